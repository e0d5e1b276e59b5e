//! Answers on their way out: what their readers have not taken yet is counted, and dropped if they take nothing.
//!
//! Invariants:
//! - what an answer holds (its permit) is held until the transport has taken all of it;
//! - the transport gets an answer in pieces of [`PIECE`], the next only when its reader has room: so what it buffers of
//!   each answer is bounded;
//! - an answer of which nothing is taken for [`STALLED`] is dropped with all it holds; one that is still being made, as a
//!   stream between two messages, waits for no reader and is never dropped.
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

use crate::admission::Permit;

/// As much is handed to the transport at once.
const PIECE: usize = 32 << 10;

/// A reader that takes nothing for this long is taken for dead; it is found within half of it.
pub const STALLED: Duration = Duration::from_secs(30);

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
    reader: Reader,
}

struct Content {
    body: Body,
    /// What the body has given and the transport has not taken.
    rest: Bytes,
    _permit: Option<Arc<Permit>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// Took all there is: the body is asked for more.
    Waits,
    /// Took something since the last look.
    Takes,
    /// Took nothing since the last look.
    Idle,
}

/// Why an answer ends before all of it is sent.
#[derive(Debug, thiserror::Error)]
#[error("the answer was not read for {STALLED:?} and is dropped")]
struct NotRead;

impl Unsent {
    /// Looks after a response on its way out.
    pub fn watch(&self, response: Response) -> Response {
        let (mut parts, body) = response.into_parts();
        let permit = parts.extensions.remove::<Arc<Permit>>();
        if body.is_end_stream() {
            return Response::from_parts(parts, body);
        }
        let content = Some(Content { body, rest: Bytes::new(), _permit: permit });
        let answer = Arc::new(Mutex::new(Answer { content, reader: Reader::Takes }));
        let mut answers = self.0.lock();
        let number = answers.next;
        answers.next += 1;
        answers.on_their_way.insert(number, Arc::clone(&answer));
        drop(answers);
        Response::from_parts(parts, Body::new(Watched { unsent: self.clone(), number, answer }))
    }

    /// Drops what dead readers leave behind, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(STALLED / 2)).await.is_some() {
            let dropped = self.look();
            if dropped > 0 {
                tracing::info!(answers = dropped, "answers that nobody reads are dropped");
            }
        }
    }

    /// Drops each answer of which nothing was taken since the last look but one; gives how many.
    fn look(&self) -> usize {
        let answers: Vec<_> = self.0.lock().on_their_way.values().cloned().collect();
        answers.iter().filter_map(|answer| answer.lock().look()).count()
    }
}

impl Answer {
    /// What was dropped.
    fn look(&mut self) -> Option<Content> {
        match self.reader {
            Reader::Waits => None,
            Reader::Takes => {
                self.reader = Reader::Idle;
                None
            }
            Reader::Idle => self.content.take(),
        }
    }
}

impl Content {
    /// At most a piece of what there is.
    fn piece(&mut self) -> Frame<Bytes> {
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE)))
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
        answer.reader = Reader::Takes;
        if !content.rest.is_empty() {
            return Poll::Ready(Some(Ok(content.piece())));
        }
        match Pin::new(&mut content.body).poll_frame(context) {
            Poll::Pending => {
                answer.reader = Reader::Waits;
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
    use crate::admission::Admission;

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
    fn an_answer_that_nobody_takes_is_dropped_with_its_permit_at_the_second_look() {
        let (unsent, admission) = (Unsent::default(), admission());
        let mut never = unsent.watch(answer(&admission, "small")).into_body();
        let mut begun = unsent.watch(answer(&admission, vec![7; LONG])).into_body();
        assert_eq!(unsent.look(), 0);
        assert_eq!(next(&mut begun), Some(Some(Ok(PIECE))));
        assert_eq!(unsent.look(), 1, "the one that took a piece is left alone");
        assert_ne!(admission.held_answers(), 0);
        assert_eq!(unsent.look(), 1);
        assert_eq!((unsent.look(), admission.held_answers()), (0, 0));
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
            assert_eq!(unsent.look(), 0);
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
