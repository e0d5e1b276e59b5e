//! One call from its arrival to its response: admit, route, then serve here or send on.
//!
//! Invariants:
//! - a call ends by its deadline; one that is late when it arrives is not begun;
//! - a write is sent elsewhere only after an error that says that it was not applied here;
//! - whatever a call holds is given back when its future or its [`Write`] is dropped, or else the permit that came with its
//!   response;
//! - a read whose response has no room is refused; what a write did is told in any case.
//!
//! Not here: what is wrong with it by itself (validate); where it goes (router); what a replica does with it (local).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::ids::{NodeId, ShardId};
use kv_proto::pb::v1::pipeline_call::Request;
use kv_proto::pb::v1::pipeline_reply::Response;
use kv_proto::pb::v1::{
    Consistency, ListRoutesRequest, ListRoutesResponse, ReadOptions, RequestHeader, ScanRequest, WriteOperation,
};
use kv_raft::replica::{Answer, Answers, Replica};
use tokio::time::Instant;

use crate::admission::{self, Permit};
use crate::catalog::{CatalogView, LeaderRecord, ShardInfo};
use crate::local::{self, Keys};
use crate::metrics::{CallKind, EdgeMetrics};
use crate::node::NodeShared;
use crate::router::{Hosted, Need, Plan, Situation, Space};
use crate::scan::cursor;
use crate::scan::ranges::Bounds;
use crate::validate::{self, GrpcTimeout};
use crate::{errors, forward};

/// How often one node tries to place a request: its leader may have moved once, its own hint may be wrong once.
const ATTEMPTS: usize = 3;

/// How long a caller that knows a newer catalog waits for this node to have it too: a few rounds of following. Answered at
/// once, it would only come back here.
const CATCH_UP: Duration = Duration::from_millis(500);

/// Serves calls; cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<NodeShared>,
    metrics: Arc<EdgeMetrics>,
}

/// Who serves a call on this node.
struct Here {
    view: Arc<CatalogView>,
    shard: Arc<ShardInfo>,
    replica: Arc<Replica>,
}

/// Where a call goes next.
enum Step {
    /// To this node's own replica.
    Here(Here, Space, Keys),
    /// To another node.
    Onward { shard: Arc<ShardInfo>, node: NodeId, address: String },
    /// Nowhere before this node has a catalog later than this version.
    CatchUp { known: u64 },
}

/// An admitted call.
struct Admitted {
    request: Request,
    permit: Permit,
    kind: CallKind,
    arrived: Instant,
    deadline: Instant,
}

/// What a call came to, with what it holds until its response is sent.
pub type Served<H = Permit> = Result<(Response, H), ServiceError>;

/// A write in the queue or the log of this node's own replica. No more is held for it than its answer takes, or finding
/// another node.
pub struct Write {
    call: Admitted,
    here: Here,
}

/// What a call that was begun and has not ended waits for.
pub enum Begun<W, F> {
    /// Its answer, which comes under its number.
    Proposed(W),
    /// Anything else.
    Runs(F),
}

/// A call on its way through whatever it takes.
pub type Running<'a> = BoxFuture<'a, Served>;

impl Server {
    /// Serves for a node.
    #[must_use]
    pub fn new(shared: Arc<NodeShared>, metrics: Arc<EdgeMetrics>) -> Self {
        Self { shared, metrics }
    }

    /// What the node's services share.
    #[must_use]
    pub fn shared(&self) -> &Arc<NodeShared> {
        &self.shared
    }

    /// What is counted here.
    #[must_use]
    pub fn metrics(&self) -> &Arc<EdgeMetrics> {
        &self.metrics
    }

    /// Serves one call.
    pub async fn call(&self, request: Request, grpc: GrpcTimeout) -> Served {
        let answers = Answers::default();
        let next = match self.begin(request, grpc, (&answers, 0)) {
            ControlFlow::Continue(Begun::Proposed(write)) => self.answered(write, answers.only().await),
            ControlFlow::Continue(Begun::Runs(running)) => ControlFlow::Continue(running),
            ControlFlow::Break(served) => ControlFlow::Break(served),
        };
        match next {
            ControlFlow::Continue(running) => running.await,
            ControlFlow::Break(served) => served,
        }
    }

    /// Begins to serve a call: a write is proposed when this returns, if this node leads its shard, and its answer comes under
    /// this number.
    pub fn begin(
        &self,
        request: Request,
        grpc: GrpcTimeout,
        (answers, number): (&Answers, usize),
    ) -> ControlFlow<Served, Begun<Write, Running<'_>>> {
        let (arrived, kind) = (Instant::now(), CallKind::of(&request));
        let call = match self.admit(request, grpc, (arrived, kind)) {
            Ok(call) => call,
            Err(error) => return ControlFlow::Break(self.ended(kind, arrived, Err(error))),
        };
        if !is_write(&call.request) {
            return ControlFlow::Continue(Begun::Runs(self.place(call, Vec::new())));
        }
        let (here, keys) = match self.step(&call.request, &[], true) {
            Ok(Step::Here(here, _, keys)) => (here, keys),
            Ok(Step::Onward { .. } | Step::CatchUp { .. }) => {
                return ControlFlow::Continue(Begun::Runs(self.place(call, Vec::new())));
            }
            Err(error) => return ControlFlow::Break(self.ended(kind, arrived, Err(error))),
        };
        match self.local(&here, call.deadline).propose(&call.request, &here.shard, &keys, (answers, number)) {
            Ok(()) => ControlFlow::Continue(Begun::Proposed(Write { call, here })),
            Err(error) => self.refused(call, error).map_continue(Begun::Runs),
        }
    }

    /// Ends a write that was answered, or looks for another node.
    pub fn answered(&self, Write { call, here }: Write, answer: Answer) -> ControlFlow<Served, Running<'_>> {
        match self.local(&here, call.deadline).written(&call.request, &here.shard, answer) {
            Ok(response) => ControlFlow::Break(self.ended(call.kind, call.arrived, held(call, response))),
            Err(error) => self.refused(call, error),
        }
    }

    /// What becomes of a write that this node's replica refused.
    fn refused(&self, call: Admitted, error: ServiceError) -> ControlFlow<Served, Running<'_>> {
        if self.may_move(&error, validate::header(&call.request)) {
            ControlFlow::Continue(self.place(call, vec![self.shared.node()]))
        } else {
            ControlFlow::Break(self.ended(call.kind, call.arrived, Err(error)))
        }
    }

    fn ended(&self, kind: CallKind, arrived: Instant, served: Served) -> Served {
        self.metrics.answered(kind, arrived.elapsed(), served.as_ref().err().map(ServiceError::reason));
        served
    }

    fn admit(
        &self,
        request: Request,
        grpc: GrpcTimeout,
        (arrived, kind): (Instant, CallKind),
    ) -> Result<Admitted, ServiceError> {
        let timeout = validate::request(&request, self.shared.cluster_id(), grpc)?;
        let permit = self.shared.admission.admit(admission::cost(&request))?;
        if admission::answers_values(&request) {
            self.shared.admission.admit_answer()?;
        }
        // What is left after the way back may be nothing.
        if timeout.is_zero() {
            return Err(errors::deadline("queue", Outcome::NotApplied));
        }
        Ok(Admitted { request, permit, kind, arrived, deadline: arrived + timeout })
    }

    /// Looks for whoever serves a call, until it is answered.
    fn place(&self, call: Admitted, tried: Vec<NodeId>) -> Running<'_> {
        Box::pin(async move {
            let (kind, arrived) = (call.kind, call.arrived);
            let response = self.placed(&call.request, call.deadline, tried).await;
            self.ended(kind, arrived, response.and_then(|response| held(call, response)))
        })
    }

    /// Where a call goes that `tried` these nodes.
    fn step(&self, request: &Request, tried: &[NodeId], is_first: bool) -> Result<Step, ServiceError> {
        let view = self.shared.view.load_full();
        let situation = self.situation(&view);
        let header = validate::header(request);
        let (space, shard, keys) = match route(&situation, request) {
            Err(_) if is_first && knows_more(header, &view) => return Ok(Step::CatchUp { known: view.version() }),
            routed => routed?,
        };
        let shard = Arc::clone(shard);
        let replica = self.shared.host.replica(shard.id());
        let hosted = replica.as_ref().map(|replica| {
            let leader = replica.leader();
            let leads = leader.is_some_and(|leader| leader.replica == replica.replica());
            Hosted { leads, leader: leader.map(|leader| leader.node) }
        });
        match (situation.plan(header, &shard, need(request), hosted, tried), replica) {
            (Plan::Refuse(error), _) => Err(error),
            (Plan::Forward { node, address }, _) => Ok(Step::Onward { shard, node, address }),
            (Plan::Serve, Some(replica)) => Ok(Step::Here(Here { view, shard, replica }, space, keys)),
            // The replica went away between the plan and now.
            (Plan::Serve, None) => Err(crate::router::no_leader(&shard)),
        }
    }

    fn local<'h>(&'h self, here: &'h Here, deadline: Instant) -> local::Call<'h> {
        local::Call { shared: &self.shared, view: &here.view, replica: &here.replica, deadline }
    }

    /// Routes until the call is answered or nothing is left to try.
    async fn placed(
        &self,
        request: &Request,
        deadline: Instant,
        mut tried: Vec<NodeId>,
    ) -> Result<Response, ServiceError> {
        for attempt in tried.len() + 1.. {
            let last = attempt >= ATTEMPTS;
            match self.step(request, &tried, attempt == 1)? {
                Step::CatchUp { known } => self.catch_up(known, deadline).await,
                Step::Here(here, space, keys) => {
                    match self.local(&here, deadline).run(request, &space, &here.shard, &keys).await {
                        Err(error) if !last && self.may_move(&error, validate::header(request)) => {
                            tried.push(self.shared.node());
                        }
                        answer => return answer,
                    }
                }
                Step::Onward { shard, node, address } => {
                    let began = Instant::now();
                    let connection = self.shared.pool.get(&address);
                    // Boxed: every call would carry the space of this rare way.
                    let onward = |cluster| forward::onward(request.clone(), cluster, deadline);
                    let forwarded = connection.call(self.shared.cluster_id(), onward, deadline);
                    let answer = Box::pin(forwarded).await;
                    self.metrics.forward.observe(began.elapsed().as_secs_f64());
                    let error = match answer {
                        Ok(response) => return Ok(response),
                        Err(error) => errors::forward(error, &shard, is_write(request)),
                    };
                    tried.push(node);
                    self.learn(&shard, node, &error);
                    if last || !moved(&error) {
                        return Err(error);
                    }
                }
            }
        }
        Err(ServiceError::Internal { why: "a request was never placed".to_owned(), outcome: Outcome::NotApplied })
    }

    /// Waits for a newer catalog; what the caller asked for is then looked up in whatever there is.
    async fn catch_up(&self, known: u64, deadline: Instant) {
        let mut version = self.shared.current.watch();
        let until = deadline.min(Instant::now() + CATCH_UP);
        // What does not come in time is answered as a stale route, which says what this node knows.
        let _ = tokio::time::timeout_at(until, version.wait_for(|version| *version > known)).await;
    }

    fn situation<'a>(&'a self, view: &'a CatalogView) -> Situation<'a> {
        Situation { view, leaders: &self.shared.leaders, node: self.shared.node() }
    }

    /// Whether another node is to be asked after this node's own replica refused.
    fn may_move(&self, error: &ServiceError, header: &RequestHeader) -> bool {
        let redirects = header.wrong_node == i32::from(kv_proto::pb::v1::WrongNode::Redirect);
        !redirects && moved(error)
    }

    /// Takes in what a refusal says about the shard's leader.
    fn learn(&self, shard: &ShardInfo, asked: NodeId, error: &ServiceError) {
        let (ServiceError::NotLeader { .. } | ServiceError::NoLeader { .. }) = error else { return };
        self.shared.leaders.forget(shard.id(), asked);
        let hinted = error.route_hint().and_then(|hint| hint.shard.as_ref()).map(|route| NodeId(route.leader_node_id));
        if let Some(node) = hinted.filter(|node| node.0 != 0 && *node != asked) {
            self.shared.leaders.learn(shard.id(), LeaderRecord { term: 0, node });
        }
    }

    /// The shards of a keyspace with their leaders.
    pub fn list_routes(
        &self,
        request: &ListRoutesRequest,
        grpc: GrpcTimeout,
    ) -> Result<ListRoutesResponse, ServiceError> {
        validate::list_routes(request, self.shared.cluster_id(), grpc)?;
        let view = self.shared.view.load();
        let space = self.situation(&view).space(validate::header_of(&request.header))?;
        let shards = view.shards_of(space.id);
        let keyspace = view.keyspace_by_id(space.id).map(|keyspace| keyspace.name.clone()).unwrap_or_default();
        Ok(ListRoutesResponse {
            cluster_id: self.shared.cluster_id().to_owned(),
            catalog_version: view.version(),
            keyspace,
            keyspace_id: space.id.0,
            hashed: space.layout == kv_proto::keys::Layout::Hash,
            shards: shards.iter().map(|shard| view.route(shard, &self.shared.leaders)).collect(),
        })
    }
}

/// Whether the caller was routed by a newer catalog than this node has.
fn knows_more(header: &RequestHeader, view: &CatalogView) -> bool {
    let known = view.shard(ShardId(header.shard_id)).map_or(0, |info| info.descriptor.epoch);
    header.shard_id != 0 && header.epoch > known
}

/// Whether the error says that nothing happened here and another node may serve.
fn moved(error: &ServiceError) -> bool {
    error.outcome() == Outcome::NotApplied
        && matches!(error, ServiceError::NotLeader { .. } | ServiceError::NoLeader { .. })
}

/// The keyspace of a call, its shard and its keys, encoded once for all of its way.
fn route<'s>(
    situation: &'s Situation<'_>,
    request: &Request,
) -> Result<(Space, &'s Arc<ShardInfo>, Keys), ServiceError> {
    let header = validate::header(request);
    let space = situation.space(header)?;
    let (shard, keys) = match request {
        Request::Get(get) => one(situation, header, &space, &get.key)?,
        Request::Put(put) => one(situation, header, &space, &put.key)?,
        Request::Delete(delete) => one(situation, header, &space, &delete.key)?,
        Request::CompareAndSet(cas) => {
            let key = cas.condition.as_ref().map_or(&[][..], |condition| &condition.key);
            one(situation, header, &space, key)?
        }
        Request::BatchGet(batch) => {
            let keys = space.encode_all(batch.keys.iter());
            (situation.shard_of_all(header, &keys)?, Keys::Many(keys))
        }
        Request::BatchWrite(batch) => {
            let conditions = batch.conditions.iter().map(|condition| &condition.key);
            let keys = space.encode_all(conditions.chain(batch.operations.iter().map(WriteOperation::key)));
            (situation.shard_of_all(header, &keys)?, Keys::Many(keys))
        }
        Request::Scan(scan) => scan_start(situation, header, &space, scan)?,
    };
    Ok((space, shard, keys))
}

fn one<'s>(
    situation: &'s Situation<'_>,
    header: &RequestHeader,
    space: &Space,
    key: &[u8],
) -> Result<(&'s Arc<ShardInfo>, Keys), ServiceError> {
    let encoded = space.encode(key);
    Ok((situation.shard_of(header, &encoded)?, Keys::One(encoded)))
}

/// A page is of the shard that holds the position: that of the cursor, or the first of the scan.
fn scan_start<'s>(
    situation: &'s Situation<'_>,
    header: &RequestHeader,
    space: &Space,
    scan: &ScanRequest,
) -> Result<(&'s Arc<ShardInfo>, Keys), ServiceError> {
    let bounds = Bounds::new(space.id, space.layout, scan);
    let from =
        if scan.cursor.is_empty() { bounds.first() } else { cursor::decode(bounds.fingerprint(), &scan.cursor)? };
    let shard = match situation.shard_by_id(header)? {
        Some(shard) => shard,
        None => situation.shard_of(header, &from)?,
    };
    Ok((shard, Keys::Scan { bounds, from }))
}

/// The response with the permit, which holds it now in place of the request.
fn held(call: Admitted, response: Response) -> Served {
    let Admitted { request, mut permit, .. } = call;
    match permit.answered(admission::answer_bytes(&response)) {
        Err(no_room) if !is_write(&request) => Err(no_room),
        Ok(()) | Err(_) => Ok((response, permit)),
    }
}

fn is_write(request: &Request) -> bool {
    match request {
        Request::Put(_) | Request::Delete(_) | Request::CompareAndSet(_) | Request::BatchWrite(_) => true,
        Request::Get(_) | Request::BatchGet(_) | Request::Scan(_) => false,
    }
}

fn need(request: &Request) -> Need {
    let read: Option<&ReadOptions> = match request {
        Request::Get(get) => get.read.as_ref(),
        Request::BatchGet(batch) => batch.read.as_ref(),
        Request::Scan(scan) => scan.read.as_ref(),
        Request::Put(_) | Request::Delete(_) | Request::CompareAndSet(_) | Request::BatchWrite(_) => None,
    };
    let stale = read.is_some_and(|read| read.consistency == i32::from(Consistency::Stale));
    if stale { Need::Any } else { Need::Leader }
}
