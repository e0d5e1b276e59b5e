//! Answers on their way out: what their readers have not taken yet is counted, and dropped if room is short and they take
//! nothing.
//!
//! Invariants:
//! - what an answer holds (its permit) is held until the transport has taken all of it;
//! - the transport gets an answer in pieces of [`PIECE`], which hold on to nothing but themselves, and the next only when
//!   the reader has announced room for it. So of an answer without a reader it has one piece, and of one whose reader
//!   announced room and takes nothing from the connection no more than its send buffer (400 KiB) until the connection's
//!   keepalive ends it;
//! - an answer that takes up room while room is short, and of which nothing is taken from one look to the next
//!   ([`LOOK`]), is dropped with all it holds; one that waits for its next message is never dropped.
//!
//! Not here: how much may be held (admission); readers that vanish, whose answers the transport drops itself.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Permit};

/// As much is handed to the transport at once: a frame of HTTP/2.
const PIECE: usize = 16 << 10;

/// Between two looks for answers that nobody reads.
const LOOK: Duration = Duration::from_secs(30);

/// Every answer on its way out; cheap to clone.
#[derive(Clone, Default)]
pub struct Unsent(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    next: u64,
    on_their_way: BTreeMap<u64, Arc<Mutex<Answer>>>,
}

/// One answer, for the transport and for whoever looks after dead readers.
struct Answer {
    /// None once it ended or was dropped.
    content: Option<Content>,
    state: State,
}

struct Content {
    body: Body,
    /// What the body has given and the transport has not taken.
    rest: Bytes,
    /// Whether a piece was cut off it.
    cut: bool,
    _permit: Option<Arc<Permit>>,
}

#[derive(Clone, Copy)]
enum State {
    /// The reader took all there is: the next message is waited for.
    AwaitsMessage,
    /// The reader took something since the last look.
    Read,
    /// The reader took nothing since the last look.
    Unread,
}

/// Why an answer ends before all of it is sent.
#[derive(Debug, thiserror::Error)]
#[error("the answer was not read for {LOOK:?}, and the node needed its room")]
struct NotRead;

impl Unsent {
    /// Looks after a response on its way out.
    pub fn watch(&self, response: Response) -> Response {
        let (mut parts, body) = response.into_parts();
        let permit = parts.extensions.remove::<Arc<Permit>>();
        if body.is_end_stream() {
            return Response::from_parts(parts, body);
        }
        let content = Some(Content { body, rest: Bytes::new(), cut: false, _permit: permit });
        let answer = Arc::new(Mutex::new(Answer { content, state: State::Read }));
        let mut answers = self.0.lock();
        let number = answers.next;
        answers.next += 1;
        answers.on_their_way.insert(number, Arc::clone(&answer));
        drop(answers);
        Response::from_parts(parts, Body::new(Watched { unsent: self.clone(), number, answer }))
    }

    /// Drops what nobody reads whenever room for answers is short, until `stop`.
    pub async fn run(self, admission: Arc<Admission>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let dropped = self.look(admission.answers_need_room());
            if dropped > 0 {
                tracing::warn!(answers = dropped, "answers that nobody reads are dropped: their room is needed");
            }
        }
    }

    /// Looks at each answer, and drops those of which nothing was taken since the last look if room is short; gives how
    /// many.
    fn look(&self, room_is_short: bool) -> usize {
        let answers: Vec<_> = self.0.lock().on_their_way.values().cloned().collect();
        answers.iter().filter_map(|answer| answer.lock().look(room_is_short)).count()
    }
}

impl Answer {
    /// What was dropped.
    fn look(&mut self, room_is_short: bool) -> Option<Content> {
        match self.state {
            State::AwaitsMessage => None,
            State::Read => {
                self.state = State::Unread;
                None
            }
            State::Unread if room_is_short => self.content.take(),
            State::Unread => None,
        }
    }
}

impl Content {
    /// The next piece of what the body gave. A slice of more than itself would keep all of it in memory.
    fn piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let is_slice = !self.rest.is_empty() || self.cut;
        self.cut = !self.rest.is_empty();
        Frame::data(if is_slice { Bytes::copy_from_slice(&piece) } else { piece })
    }
}

/// The body that the transport asks for the next piece.
struct Watched {
    unsent: Unsent,
    number: u64,
    answer: Arc<Mutex<Answer>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut answer = self.answer.lock();
        let answer = &mut *answer;
        let Some(content) = &mut answer.content else { return Poll::Ready(Some(Err(axum::Error::new(NotRead)))) };
        answer.state = State::Read;
        if !content.rest.is_empty() {
            return Poll::Ready(Some(Ok(content.piece())));
        }
        match Pin::new(&mut content.body).poll_frame(context) {
            Poll::Pending => {
                answer.state = State::AwaitsMessage;
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => {
                    content.rest = data;
                    content.piece()
                }
                Err(trailers) => trailers,
            }))),
            ended => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.answer
            .lock()
            .content
            .as_ref()
            .is_some_and(|content| content.rest.is_empty() && content.body.is_end_stream())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.unsent.0.lock().on_their_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    const LONG: usize = 3 * PIECE + 1;

    fn admission() -> Arc<Admission> {
        Arc::new(Admission::new(10, 10 << 20))
    }

    fn answer(admission: &Arc<Admission>, body: impl Into<Body>) -> Response {
        let mut response = Response::new(body.into());
        let mut permit = admission.admit(0).unwrap();
        permit.answered(LONG).unwrap();
        response.extensions_mut().insert(Arc::new(permit));
        response
    }

    fn next(body: &mut Body) -> Option<Option<Result<usize, String>>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).now_or_never()?;
        Some(frame.map(|frame| frame.map(|frame| frame.into_data().unwrap().len()).map_err(|error| error.to_string())))
    }

    #[test]
    fn an_answer_goes_out_in_pieces_and_holds_its_permit_until_the_last() {
        let (unsent, admission) = (Unsent::default(), admission());
        let mut body = unsent.watch(answer(&admission, vec![7; LONG])).into_body();
        for bytes in [PIECE, PIECE, PIECE, 1] {
            assert_ne!(admission.held_answers(), 0);
            assert_eq!(next(&mut body), Some(Some(Ok(bytes))));
        }
        drop(body);
        assert_eq!((admission.held_answers(), unsent.0.lock().on_their_way.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_is_sent_is_what_was_given() {
        let given: Vec<u8> = (0..LONG).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let sent = Unsent::default().watch(answer(&admission(), given.clone())).into_body();
        assert_eq!(to_bytes(sent, usize::MAX).await.unwrap(), given);
    }

    #[test]
    fn a_piece_keeps_nothing_else_in_memory() {
        let whole = Bytes::from(vec![7; LONG]);
        let mut body = Unsent::default().watch(answer(&admission(), whole.clone())).into_body();
        for _ in 0..4 {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).now_or_never();
            let piece = frame.unwrap().unwrap().unwrap().into_data().unwrap();
            assert!(!whole.as_ptr_range().contains(&piece.as_ptr()));
        }
        drop(body);
        assert!(whole.is_unique());
    }

    #[test]
    fn an_answer_that_nobody_takes_is_dropped_at_the_second_look_if_room_is_short() {
        let (unsent, admission) = (Unsent::default(), admission());
        let mut never = unsent.watch(answer(&admission, "small")).into_body();
        let mut begun = unsent.watch(answer(&admission, vec![7; LONG])).into_body();
        for room_is_short in [true, false, false] {
            assert_eq!(unsent.look(room_is_short), 0);
        }
        assert_eq!(next(&mut begun), Some(Some(Ok(PIECE))));
        assert_eq!(unsent.look(true), 1, "the one of which a piece was taken is left alone");
        assert_ne!(admission.held_answers(), 0);
        assert_eq!(unsent.look(true), 1);
        assert_eq!((unsent.look(true), admission.held_answers()), (0, 0));
        for body in [&mut never, &mut begun] {
            assert!(next(body).flatten().unwrap().unwrap_err().contains("was not read"));
        }
    }

    #[test]
    fn a_stream_between_two_messages_waits_for_no_reader() {
        let (unsent, admission) = (Unsent::default(), admission());
        let messages = futures::stream::iter([Ok::<_, std::io::Error>("message")]).chain(futures::stream::pending());
        let mut body = unsent.watch(answer(&admission, Body::from_stream(messages))).into_body();
        assert_eq!(next(&mut body), Some(Some(Ok("message".len()))));
        assert_eq!(next(&mut body), None);
        for _ in 0..3 {
            assert_eq!(unsent.look(true), 0);
        }
        assert_ne!(admission.held_answers(), 0);
    }

    #[test]
    fn an_answer_without_a_body_is_not_watched() {
        let (unsent, admission) = (Unsent::default(), admission());
        let response = unsent.watch(answer(&admission, Body::empty()));
        assert_eq!((unsent.0.lock().on_their_way.len(), admission.held_answers()), (0, 0));
        drop(response);
    }
}
