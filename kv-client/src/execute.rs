//! One request, from its first attempt to its result: find the shard, choose a node, send, and do what retry decides.
//!
//! Invariants:
//! - all attempts of a write carry the same client and sequence;
//! - the request ends by its deadline;
//! - the outcome told is Unknown once any attempt was.
//!
//! Not here: what to do about a failed attempt (retry), which keys go together (requests).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::ids::NodeId;
use kv_proto::pb::v1 as pb;
use tokio::time::{Instant, sleep_until};

use crate::connection::{CallError, NodeConnection, pipeline_call, pipeline_reply};
use crate::core::header;
use crate::data::Consistency;
use crate::error::Error;
use crate::retry::{Attempt, Decision, Step, decide};
use crate::routes::{ReplicaRoute, Routes, ShardRoute};
use crate::scope::Scope;
use crate::session::Write;

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A user's key.
    Key(&'a Bytes),
    /// Users' keys that must lie in one shard; not empty.
    Keys(&'a [&'a Bytes]),
    /// An encoded key.
    Position(&'a Bytes),
}

/// What a request does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes something; under a session.
    Write,
    /// Reads what only the leader knows.
    Read,
    /// Reads from any replica.
    ReadAnywhere,
}

impl Kind {
    pub(crate) fn reading(consistency: Consistency) -> Self {
        if consistency.any_replica() { Self::ReadAnywhere } else { Self::Read }
    }
}

/// One request.
pub(crate) struct Operation<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) kind: Kind,
    pub(crate) deadline: Deadline,
    /// Builds the message of one attempt.
    pub(crate) message: &'a (dyn Fn(pb::RequestHeader) -> pipeline_call::Request + Send + Sync),
}

/// When a request ends, and how long that was from its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) timeout: Duration,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { at: Instant::now() + timeout, timeout }
    }

    fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// A response and the route it came by.
pub(crate) struct Answer {
    pub(crate) response: pipeline_reply::Response,
    pub(crate) route: Arc<ShardRoute>,
}

/// What is remembered between attempts.
struct Course {
    /// Attempts made.
    number: u32,
    outcome: Outcome,
    /// Did not serve the last attempt.
    avoid: Option<NodeId>,
    /// Where the turn through the replicas begins; random, so that clients spread.
    turn: usize,
    write: Option<Write>,
    last: Option<CallError>,
}

/// Why one attempt failed: a node did, or the request does not fit one shard.
enum Miss {
    Failed { error: CallError, node: Option<NodeId> },
    CrossShard(ServiceError),
}

impl Scope {
    /// A request's own timeout, or the client's.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Deadline {
        Deadline::after(timeout.unwrap_or(self.core.timeouts.request))
    }

    pub(crate) async fn execute(&self, operation: Operation<'_>) -> Result<Answer, Error> {
        let turn = usize::from(rand::random::<u16>());
        let mut course = Course { number: 0, outcome: Outcome::NotApplied, avoid: None, turn, write: None, last: None };
        loop {
            course.number += 1;
            let (error, node) = match self.attempt(&operation, &mut course).await {
                Ok(answer) => {
                    self.core.budget.earn();
                    return Ok(answer);
                }
                Err(Miss::CrossShard(error)) => {
                    let attempts = course.number - 1;
                    return Err(Error::Service { error, outcome: course.outcome, attempts });
                }
                Err(Miss::Failed { error, node }) => (error, node),
            };
            // Without a node it failed while it was routed: nothing of the write was sent.
            if operation.kind == Kind::Write && node.is_some() && error.outcome() == Outcome::Unknown {
                course.outcome = Outcome::Unknown;
            }
            let remaining = operation.deadline.remaining();
            if remaining.is_zero() {
                return Err(course.out_of_time(operation.deadline, error));
            }
            let budget = course.number == 1 || self.core.budget.spend();
            let attempt = Attempt { number: course.number, repeatable: true, remaining, budget };
            match decide(&error, attempt) {
                Decision::Fail => return Err(Error::from_call(error, course.outcome, course.number)),
                Decision::Retry { step, least, window } => {
                    tracing::debug!(attempt = course.number, ?step, %error, "sending again");
                    self.learn(&operation, &error, node).await;
                    course.last = Some(error);
                    course.avoid = if step == Step::Elsewhere || step == Step::Refresh { node } else { None };
                    course.turn = course.turn.wrapping_add(1);
                    let pause = least + window.mul_f64(rand::random());
                    if !pause.is_zero() {
                        sleep_until((Instant::now() + pause).min(operation.deadline.at)).await;
                    }
                    if step == Step::Refresh {
                        // Old routes do until better ones can be had.
                        let _ = self.routes.refresh(self.attempt_deadline(operation.deadline)).await;
                    }
                    if operation.deadline.remaining().is_zero() {
                        return Err(course.out_of_time_after_last(operation.deadline));
                    }
                }
            }
        }
    }

    /// The routes as far as known, to plan a request over many shards; waits until there are some.
    pub(crate) async fn known_routes(&self, deadline: Deadline) -> Result<Arc<Routes>, Error> {
        let mut number = 0;
        loop {
            number += 1;
            let attempt_deadline = self.attempt_deadline(deadline);
            let error = match self.routes.get(attempt_deadline).await {
                Ok(routes) => return Ok(routes),
                Err(error) => error,
            };
            let attempt = Attempt { number, repeatable: true, remaining: deadline.remaining(), budget: true };
            match decide(&error, attempt) {
                Decision::Retry { least, window, .. } if !attempt.remaining.is_zero() => {
                    let pause = least + window.mul_f64(rand::random());
                    sleep_until((Instant::now() + pause).min(deadline.at)).await;
                }
                Decision::Retry { .. } | Decision::Fail => {
                    return Err(Error::from_call(error, Outcome::NotApplied, number));
                }
            }
        }
    }

    async fn attempt(&self, operation: &Operation<'_>, course: &mut Course) -> Result<Answer, Miss> {
        let deadline = self.attempt_deadline(operation.deadline);
        let route = self.find(operation.target, deadline).await?;
        let (replica, node) = self.choose(&route, operation.kind, course).ok_or_else(|| Miss::no_replica(&route))?;
        let session =
            (operation.kind == Kind::Write).then(|| course.write.get_or_insert_with(|| route.lane().begin()).session());
        let message = |cluster| {
            let (shard_id, epoch) = (route.shard().0, route.epoch().0);
            let place =
                pb::RequestHeader { keyspace: self.wire_name(), shard_id, epoch, session, ..header(cluster, deadline) };
            (operation.message)(place)
        };
        match node.call(self.core.cluster_name(), message, deadline).await {
            Ok(response) => Ok(Answer { response, route }),
            Err(error) => Err(Miss::Failed { error, node: Some(replica.node) }),
        }
    }

    fn attempt_deadline(&self, deadline: Deadline) -> Instant {
        deadline.at.min(Instant::now() + self.core.timeouts.attempt)
    }

    /// The route to the target; fetches routes if there are none, or a hole where it should be.
    async fn find(&self, target: Target<'_>, deadline: Instant) -> Result<Arc<ShardRoute>, Miss> {
        let routes = self.routes.get(deadline).await.map_err(Miss::from)?;
        if let Some(route) = locate(&routes, target)? {
            return Ok(route);
        }
        let routes = self.routes.refresh(deadline).await.map_err(Miss::from)?;
        locate(&routes, target)?.ok_or_else(|| {
            let why = format!("keyspace {:?} has no shard for the key yet", self.name);
            Miss::from(CallError::from(ServiceError::NotReady { why, retry_after: Duration::from_millis(20) }))
        })
    }

    /// The leader if one is known and its circuit is closed; else the replicas in turn, live ones first.
    fn choose<'a>(
        &self,
        route: &'a ShardRoute,
        kind: Kind,
        course: &Course,
    ) -> Option<(&'a ReplicaRoute, NodeConnection)> {
        let connection = |replica: &'a ReplicaRoute| (replica, self.core.pool.get(&replica.address));
        let live = |replica| Some(connection(replica)).filter(|(_, node)| node.is_available());
        let others = || {
            let replicas = route.replicas();
            let turn = replicas.iter().cycle().skip(course.turn % replicas.len().max(1)).take(replicas.len());
            turn.filter(move |replica| Some(replica.node) != course.avoid)
        };
        let leader = route.replicas().iter().find(|replica| Some(replica.node) == route.leader());
        let leader = leader.filter(|replica| kind != Kind::ReadAnywhere && Some(replica.node) != course.avoid);
        leader
            .and_then(live)
            .or_else(|| others().filter(|replica| replica.voter).find_map(live))
            .or_else(|| others().find_map(live))
            .or_else(|| leader.or_else(|| others().next()).or_else(|| route.replicas().first()).map(connection))
    }

    /// Corrects the routes by what the failure says.
    async fn learn(&self, operation: &Operation<'_>, error: &CallError, node: Option<NodeId>) {
        match error {
            CallError::Service(error) => {
                if let Some(hint) = error.route_hint() {
                    self.routes.merge(hint);
                }
            }
            CallError::Connection(_) => {
                let Some(routes) = self.routes.known() else { return };
                if let (Ok(Some(route)), Some(node)) = (locate(&routes, operation.target), node) {
                    route.forget_leader(node);
                }
            }
        }
    }
}

/// The one shard that holds the target; None in a hole.
fn locate(routes: &Routes, target: Target<'_>) -> Result<Option<Arc<ShardRoute>>, Miss> {
    match target {
        Target::Key(key) => Ok(routes.shard_of(key).cloned()),
        Target::Position(encoded) => Ok(routes.at(encoded).cloned()),
        Target::Keys(keys) => {
            let Some(first) = keys.first().and_then(|key| routes.shard_of(key)) else { return Ok(None) };
            for key in keys.iter().skip(1) {
                let Some(second) = routes.shard_of(key) else { return Ok(None) };
                if second.shard() != first.shard() {
                    let error = ServiceError::CrossShard { first: first.shard(), second: second.shard() };
                    return Err(Miss::CrossShard(error));
                }
            }
            Ok(Some(first.clone()))
        }
    }
}

impl Miss {
    fn no_replica(route: &ShardRoute) -> Self {
        let why = format!("no replica of shard {} is known yet", route.shard());
        CallError::from(ServiceError::NotReady { why, retry_after: Duration::from_millis(20) }).into()
    }
}

impl From<CallError> for Miss {
    fn from(error: CallError) -> Self {
        Self::Failed { error, node: None }
    }
}

impl Course {
    fn out_of_time(&self, deadline: Deadline, last: CallError) -> Error {
        let last = Some(Box::new(last));
        Error::DeadlineExceeded { timeout: deadline.timeout, attempts: self.number, outcome: self.outcome, last }
    }

    fn out_of_time_after_last(&mut self, deadline: Deadline) -> Error {
        let last = self.last.take().map(Box::new);
        Error::DeadlineExceeded { timeout: deadline.timeout, attempts: self.number, outcome: self.outcome, last }
    }
}
