//! Reading ranges of keys.
//!
//! Invariants: entries come in range order: by key in a range keyspace, by (slot, key) in a hash keyspace; a key that
//! exists during the whole scan comes exactly once, also if shards split meanwhile.
//!
//! Not here: which shards a scan touches (scan_plan).

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use kv_proto::errors::ServiceError;
use kv_proto::key_range::KeyRange;
use kv_proto::limits::PAGE_ENTRIES_MAX;
use kv_proto::pb::v1 as pb;

use super::scan_plan::{Bounds, Place, encoded_range, parts};
use crate::connection::pipeline_call::Request;
use crate::data::{Consistency, Data, Entry};
use crate::error::{Error, Result};
use crate::execute::{Deadline, Kind, Operation, Target};
use crate::scope::Scope;

/// Entries of a page unless set: small enough to answer soon, large enough to hide the round trip.
const PAGE_SIZE: usize = 1000;

/// Shards read at the same time while the first ones are still being consumed; bounds memory to as many pages.
const SHARDS_AHEAD: usize = 4;

/// Reads ranges of keys, as a stream or page by page. A range keyspace gives keys in order; a hash keyspace by slot, and
/// in order within a slot. Not one moment of the keyspace unless read at a snapshot: pages are read one after another.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use futures::TryStreamExt as _;
///
/// let mut users = client.scan().prefix("user:").limit(100).stream();
/// while let Some(entry) = users.try_next().await? {
///     println!("{:?} = {:?}", entry.key, entry.value);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a scan does nothing before its stream or page is read"]
pub struct Scan {
    scope: Arc<Scope>,
    bounds: Bounds,
    limit: Option<usize>,
    page_size: usize,
    keys_only: bool,
    consistency: Consistency,
    timeout: Option<Duration>,
}

/// Where a scan goes on; valid for the same bounds and options. Opaque bytes that may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Bytes);

impl Cursor {
    /// From bytes that [`Cursor::as_bytes`] gave; others are refused by the page they are used for.
    pub fn from_bytes(bytes: impl Into<Data>) -> Self {
        Self(bytes.into().0)
    }

    /// To be stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// May be fewer than asked, even none, before the end.
    pub entries: Vec<Entry>,
    /// Where to go on; None at the end.
    pub next: Option<Cursor>,
}

impl Scan {
    pub(crate) fn new(scope: &Arc<Scope>) -> Self {
        Self {
            scope: scope.clone(),
            bounds: Bounds::default(),
            limit: None,
            page_size: PAGE_SIZE,
            keys_only: false,
            consistency: Consistency::default(),
            timeout: None,
        }
    }

    /// Only keys that begin so.
    pub fn prefix(mut self, prefix: impl Into<Data>) -> Self {
        self.bounds.prefix = prefix.into().0;
        self
    }

    /// First key, inclusive. Not together with a prefix.
    pub fn start(mut self, key: impl Into<Data>) -> Self {
        self.bounds.start = key.into().0;
        self
    }

    /// Last key, exclusive. Not together with a prefix.
    pub fn end(mut self, key: impl Into<Data>) -> Self {
        self.bounds.end = key.into().0;
        self
    }

    /// Most entries of the stream.
    pub fn limit(mut self, entries: usize) -> Self {
        self.limit = Some(entries);
        self
    }

    /// Most entries of one page, 1 to 10,000.
    pub fn page_size(mut self, entries: usize) -> Self {
        self.page_size = entries;
        self
    }

    /// Leaves the values out.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// What the reads promise; linearizable unless set.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Time each page gets, retries included, instead of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// All entries, page after page, as fast as they are consumed; several shards are read ahead.
    #[must_use]
    pub fn stream(self) -> ScanStream {
        let limit = self.limit.unwrap_or(usize::MAX);
        let entries = stream::once(Arc::new(self).begin()).try_flatten().take(limit);
        ScanStream(entries.boxed())
    }

    /// One page: the first, or the one after `cursor`.
    pub fn page(self, cursor: impl Into<Option<Cursor>>) -> ScanPageRequest {
        ScanPageRequest { scan: self, cursor: cursor.into() }
    }

    /// Entries of one page; never more than the limit asks for.
    fn page_entries(&self) -> usize {
        self.page_size.min(self.limit.unwrap_or(usize::MAX))
    }

    fn check(&self) -> Result<()> {
        let invalid = |field, why: String| Err(Error::foreseen(ServiceError::invalid(field, why)));
        let bounded = !self.bounds.start.is_empty() || !self.bounds.end.is_empty();
        if bounded && !self.bounds.prefix.is_empty() {
            return invalid("prefix", "not together with start or end".to_owned());
        }
        if !(1..=PAGE_ENTRIES_MAX).contains(&self.page_size) {
            return invalid("page_size", format!("must be between 1 and {PAGE_ENTRIES_MAX}, is {}", self.page_size));
        }
        Ok(())
    }

    async fn begin(self: Arc<Self>) -> Result<impl Stream<Item = Result<Entry>> + Send + use<>> {
        self.check()?;
        let scope = &self.scope;
        let parts = if self.limit == Some(0) {
            vec![]
        } else {
            let routes = scope.known_routes(scope.deadline(self.timeout)).await?;
            encoded_range(&routes, &self.bounds).map_or_else(Vec::new, |range| parts(&routes, &range))
        };
        // A limit that one page may fill is not worth reading further shards for.
        let ahead = if self.limit.is_some_and(|limit| limit <= self.page_size) { 1 } else { SHARDS_AHEAD };
        let first_pages = parts.into_iter().map({
            let scan = self.clone();
            move |part| {
                let scan = scan.clone();
                async move {
                    let place = Place { position: part.start().clone(), resume: Bytes::new() };
                    let read = scan.read(&part, place).await?;
                    Ok::<_, Error>((part, read))
                }
            }
        });
        let entries =
            stream::iter(first_pages).buffered(ahead).map_ok(move |(part, read)| self.clone().rest(part, read));
        Ok(entries.try_flatten())
    }

    /// The entries of a page that was read, and of the pages after it in the part.
    fn rest(self: Arc<Self>, part: KeyRange, read: Read) -> impl Stream<Item = Result<Entry>> + Send + use<> {
        let pages = stream::try_unfold(Some(Step::Have(read)), move |step| {
            let (scan, part) = (self.clone(), part.clone());
            async move {
                let read = match step {
                    None => return Ok(None),
                    Some(Step::Have(read)) => read,
                    Some(Step::Go(place)) => scan.read(&part, place).await?,
                };
                let entries = stream::iter(read.entries.into_iter().map(Ok));
                Ok::<_, Error>(Some((entries, read.next.map(Step::Go))))
            }
        });
        pages.try_flatten()
    }

    /// One page within a part of the keyspace.
    async fn read(&self, part: &KeyRange, place: Place) -> Result<Read> {
        let scope = &self.scope;
        let read = self.consistency.to_pb();
        let page_size = i32::try_from(self.page_entries()).unwrap_or(i32::MAX);
        let message = |header| {
            Request::Scan(pb::ScanRequest {
                header: Some(header),
                start: self.bounds.start.clone(),
                end: self.bounds.end.clone(),
                prefix: self.bounds.prefix.clone(),
                page_size,
                cursor: place.resume.clone(),
                keys_only: self.keys_only,
                read: Some(read),
            })
        };
        let deadline: Deadline = scope.deadline(self.timeout);
        let kind = Kind::reading(self.consistency);
        let operation = Operation { target: Target::Position(&place.position), kind, deadline, message: &message };
        let answer = scope.execute(operation).await?;
        let response = super::response!(answer.response, Scan)?;
        let next = if response.cursor.is_empty() {
            // This shard is done; the part may go on in the next one if the shard was split.
            let end = answer.route.range().end().clone();
            let more = !end.is_empty() && part.contains(&end);
            more.then_some(Place { position: end, resume: place.resume })
        } else {
            Some(Place { position: place.position, resume: response.cursor })
        };
        Ok(Read { entries: response.entries.into_iter().map(Entry::from).collect(), next })
    }
}

struct Read {
    entries: Vec<Entry>,
    next: Option<Place>,
}

enum Step {
    Have(Read),
    Go(Place),
}

/// The entries of a scan. Dropping it ends the scan.
pub struct ScanStream(BoxStream<'static, Result<Entry>>);

impl Stream for ScanStream {
    type Item = Result<Entry>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for ScanStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanStream").finish_non_exhaustive()
    }
}

/// One page of a scan; awaiting it gives a [`Page`].
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// let mut cursor = None;
/// loop {
///     let page = client.scan().page_size(100).page(cursor).await?;
///     println!("{} entries", page.entries.len());
///     cursor = page.next;
///     if cursor.is_none() {
///         break;
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct ScanPageRequest {
    scan: Scan,
    cursor: Option<Cursor>,
}

impl ScanPageRequest {
    async fn run(self) -> Result<Page> {
        let scan = self.scan;
        scan.check()?;
        let scope = &scan.scope;
        let routes = scope.known_routes(scope.deadline(scan.timeout)).await?;
        let end = Page { entries: vec![], next: None };
        if scan.limit == Some(0) {
            return Ok(end);
        }
        let Some(range) = encoded_range(&routes, &scan.bounds) else { return Ok(end) };
        let place = match &self.cursor {
            None => Place { position: range.start().clone(), resume: Bytes::new() },
            Some(cursor) => Place::decode(&cursor.0)
                .filter(|place| range.contains(&place.position))
                .ok_or_else(|| Error::foreseen(ServiceError::CursorMismatch))?,
        };
        let read = scan.read(&range, place).await?;
        Ok(Page { entries: read.entries, next: read.next.map(|place| Cursor(place.encode())) })
    }
}

impl std::future::IntoFuture for ScanPageRequest {
    type Output = Result<Page>;
    type IntoFuture = futures::future::BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
