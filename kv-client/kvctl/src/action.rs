//! `action`: long actions, and waiting for them with a bar.
//!
//! Invariants: Ctrl-C ends the waiting, never the action, and says so.
//!
//! Not here: the commands that start actions (shard, node).

use std::time::Duration;

use clap::Subcommand;
use kv_proto::pb::admin::v1::{Action, ActionKind, ActionState, CancelActionRequest};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::output::{Grid, Text, Tone, toned};
use crate::progress::Progress;

/// How often the cluster is asked how far an action is.
const POLL: Duration = Duration::from_millis(300);

/// `action`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ActionCommand {
    /// List actions, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those still running
        #[arg(long)]
        running: bool,
    },
    /// End an action before its next step
    Cancel {
        /// As `action list` shows it
        action: u64,
    },
    /// Wait until an action has ended
    Wait {
        /// As `action list` shows it
        action: u64,
    },
}

/// For commands that start an action.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Waiting {
    /// Return as soon as the action has begun
    #[arg(long)]
    pub(crate) no_wait: bool,
}

impl Context {
    /// `action ...`.
    pub(crate) async fn action(&self, command: &ActionCommand) -> Result<Exit, Failure> {
        match command {
            ActionCommand::List { running } => {
                let mut actions = self.actions(*running).await?;
                actions.sort_by_key(|action| std::cmp::Reverse(action.action_id));
                let now_ms = human::now_ms();
                self.output.show(json!({ "actions": actions.iter().map(to_json).collect::<Vec<_>>() }), |look| {
                    if actions.is_empty() { "no actions".to_owned() } else { table(&actions, now_ms).render(look) }
                })?;
                Ok(Exit::Ok)
            }
            ActionCommand::Cancel { action } => {
                let request = CancelActionRequest { action_id: *action };
                let doing = format!("cancel action {action}");
                let response = self.admin().cancel_action(request).await.map_err(|error| error.write(&doing))?;
                let ended = response.action.unwrap_or_default();
                self.show_action(&ended, format!("action {action} ends before its next step"))
            }
            ActionCommand::Wait { action } => {
                let known = self.actions(false).await?.into_iter().find(|known| known.action_id == *action);
                let known = known.ok_or_else(|| {
                    Failure::no("NOT_FOUND", format!("action {action} does not exist"))
                        .advise("kvctl action list shows the actions")
                })?;
                self.finish_action(known, Waiting::default()).await
            }
        }
    }

    /// Waits for an action that was just begun, unless told not to, and prints how it ended.
    pub(crate) async fn finish_action(&self, action: Action, waiting: Waiting) -> Result<Exit, Failure> {
        if waiting.no_wait {
            let id = action.action_id;
            return self.show_action(&action, format!("action {id} has begun; kvctl action wait {id} follows it"));
        }
        let ended = self.wait_for_all(vec![action]).await?;
        let Some(action) = ended.into_iter().next() else { return Ok(Exit::Ok) };
        let took = human::duration(Duration::from_millis(action.ended_ms.saturating_sub(action.started_ms)));
        let shown = self.show_action(&action, format!("{} is done, after {took}", title(&action)))?;
        Ok(shown)
    }

    fn show_action(&self, action: &Action, text: String) -> Result<Exit, Failure> {
        self.output.show(json!({ "action": to_json(action) }), |_| text)?;
        Ok(Exit::Ok)
    }

    /// Until all have ended; fails if one did not end well.
    pub(crate) async fn wait_for_all(&self, actions: Vec<Action>) -> Result<Vec<Action>, Failure> {
        let ids: Vec<u64> = actions.iter().map(|action| action.action_id).collect();
        let progress = Progress::share(&self.output, 100 * actions.len() as u64);
        let mut actions = actions;
        while actions.iter().any(is_running) {
            let done: u64 = actions.iter().map(|action| u64::from(share(action))).sum();
            progress.set(done, what_now(&actions));
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                _ = tokio::signal::ctrl_c() => return Err(interrupted(&ids)),
            }
            match self.actions(false).await {
                Ok(all) => {
                    // An action that the cluster has forgotten ended long ago.
                    for action in &mut actions {
                        match all.iter().find(|other| other.action_id == action.action_id) {
                            Some(newer) => action.clone_from(newer),
                            None => action.state = ActionState::Done.into(),
                        }
                    }
                }
                Err(failure) if failure.exit == Exit::Unavailable => {
                    progress.set(0, "waiting for the cluster to answer")
                }
                Err(failure) => return Err(failure),
            }
        }
        drop(progress);
        match actions.iter().find(|action| action.state() != ActionState::Done) {
            Some(bad) => Err(ended_badly(bad)),
            None => Ok(actions),
        }
    }
}

fn interrupted(ids: &[u64]) -> Failure {
    let (list, one) = (human::list(ids), ids.len() == 1);
    let first = ids.first().copied().unwrap_or_default();
    Failure::interrupted(format!(
        "no longer waiting; {} {list} {} on",
        if one { "action" } else { "actions" },
        if one { "goes" } else { "go" }
    ))
    .advise(format!("kvctl action wait {first} follows it again, kvctl action cancel {first} ends it"))
}

fn ended_badly(action: &Action) -> Failure {
    let (reason, how) = match action.state() {
        ActionState::Cancelled => ("CANCELLED", "was cancelled"),
        ActionState::Failed | ActionState::Unspecified | ActionState::Running | ActionState::Done => {
            ("FAILED", "failed")
        }
    };
    let why = if action.progress.is_empty() { String::new() } else { format!(": {}", action.progress) };
    Failure::no(reason, format!("{} {how}{why}", title(action)))
        .advise(format!("kvctl shard describe {} shows what stands", action.shard_id))
}

fn is_running(action: &Action) -> bool {
    matches!(action.state(), ActionState::Running | ActionState::Unspecified)
}

fn share(action: &Action) -> u32 {
    if is_running(action) { action.percent.min(100) } else { 100 }
}

fn what_now(actions: &[Action]) -> String {
    let running: Vec<&Action> = actions.iter().filter(|action| is_running(action)).collect();
    match running.split_first() {
        None => String::new(),
        Some((only, [])) => format!("{}: {}", title(only), only.progress),
        Some((first, rest)) => format!("{}: {} (and {} more)", title(first), first.progress, rest.len()),
    }
}

fn title(action: &Action) -> String {
    format!("action {} ({} of shard {})", action.action_id, kind_name(action.kind()), action.shard_id)
}

/// In words.
pub(crate) fn kind_name(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::AddLearner => "add learner",
        ActionKind::Promote => "promote",
        ActionKind::RemoveReplica => "remove replica",
        ActionKind::MoveReplica => "move replica",
        ActionKind::ChangeVoters => "change voters",
        ActionKind::Unspecified => "action",
    }
}

fn state_name(state: ActionState) -> &'static str {
    match state {
        ActionState::Running => "running",
        ActionState::Done => "done",
        ActionState::Failed => "failed",
        ActionState::Cancelled => "cancelled",
        ActionState::Unspecified => "unknown",
    }
}

fn tone(state: ActionState) -> Tone {
    match state {
        ActionState::Running => Tone::Warn,
        ActionState::Done => Tone::Good,
        ActionState::Failed => Tone::Bad,
        ActionState::Cancelled | ActionState::Unspecified => Tone::Dim,
    }
}

/// As documented in docs/kvctl.md.
pub(crate) fn to_json(action: &Action) -> Value {
    json!({
        "action": action.action_id,
        "kind": kind_name(action.kind()),
        "shard": action.shard_id,
        "from_node": action.from_node_id,
        "to_node": action.to_node_id,
        "voter_nodes": action.voter_node_ids,
        "state": state_name(action.state()),
        "progress": action.progress,
        "percent": action.percent,
        "started_ms": action.started_ms,
        "ended_ms": action.ended_ms,
        "forced": action.forced,
        "planned_epoch": action.planned_epoch,
    })
}

fn table(actions: &[Action], now_ms: u64) -> Grid {
    let mut grid = Grid::new(&[">ACTION", "KIND", ">SHARD", "NODES", "STATE", ">%", ">AGE", "PROGRESS"]);
    for action in actions {
        grid.row(vec![
            Text::from(action.action_id),
            kind_name(action.kind()).into(),
            action.shard_id.into(),
            nodes(action).into(),
            toned(state_name(action.state()), tone(action.state())),
            share(action).into(),
            human::age(now_ms, action.started_ms).into(),
            action.progress.as_str().into(),
        ]);
    }
    grid
}

fn nodes(action: &Action) -> String {
    match (action.from_node_id, action.to_node_id) {
        (0, 0) if action.voter_node_ids.is_empty() => human::NOTHING.to_owned(),
        (0, 0) => action.voter_node_ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        (from, 0) => format!("-{from}"),
        (0, to) => format!("+{to}"),
        (from, to) => format!("{from}->{to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Look;

    fn action(id: u64, state: ActionState) -> Action {
        Action {
            action_id: id,
            kind: ActionKind::MoveReplica.into(),
            shard_id: 4,
            from_node_id: 1,
            to_node_id: 2,
            state: state.into(),
            progress: "catching up".into(),
            percent: 40,
            started_ms: 1000,
            ..Action::default()
        }
    }

    #[test]
    fn the_table_says_what_moves_where_and_how_far_it_is() {
        let expected = "\
ACTION  KIND          SHARD  NODES  STATE      %  AGE  PROGRESS
     8  move replica      4  1->2   running   40  12s  catching up
     7  move replica      4  1->2   done     100  12s  catching up";
        let actions = [action(8, ActionState::Running), action(7, ActionState::Done)];
        assert_eq!(table(&actions, 13_000).render(Look::default()), expected);
    }

    #[test]
    fn an_action_that_failed_ends_with_one_and_says_why() {
        let failure = ended_badly(&action(8, ActionState::Failed));
        assert_eq!(failure.exit, Exit::No);
        assert_eq!(failure.to_string(), "action 8 (move replica of shard 4) failed: catching up");
    }

    #[test]
    fn ctrl_c_says_that_the_action_goes_on() {
        assert_eq!(interrupted(&[8]).to_string(), "no longer waiting; action 8 goes on");
        assert_eq!(interrupted(&[8, 9]).to_string(), "no longer waiting; actions 8 and 9 go on");
    }
}
