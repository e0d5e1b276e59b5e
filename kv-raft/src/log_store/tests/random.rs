//! Random changes of two shards against the plainest model, over restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(u64, usize),
    Truncate(u64),
    Purge(u64),
    Vote,
    Committed,
    Destroy,
    Reopen,
}

#[derive(Default, PartialEq, Debug)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries
            .last_key_value()
            .map(|(index, _)| *index)
            .or(self.purged.map(|id| id.index))
            .map_or(0, |last| last + 1)
    }
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        6 => (1_u64..5, prop_oneof![Just(20_usize), Just(9_000), Just(30_000)]).prop_map(|(count, bytes)| Step::Append(count, bytes)),
        2 => (0_u64..6).prop_map(Step::Truncate),
        2 => (0_u64..6).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        2 => Just(Step::Committed),
        1 => Just(Step::Destroy),
        2 => Just(Step::Reopen),
    ];
    proptest::collection::vec((1_u64..3, step), 1..40)
}

async fn found(engine: &LogEngine, shard: u64) -> Model {
    let mut log = store(engine, shard);
    Model {
        entries: read(&log).await.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
        purged: log.bounds().last_purged_log_id,
        vote: log.get_log_reader().await.read_vote().await.unwrap(),
        committed: log.read_committed().await.unwrap(),
    }
}

async fn run(steps: Vec<(u64, Step)>) {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open_small(dir.path());
    let mut models: BTreeMap<u64, Model> = [(1, Model::default()), (2, Model::default())].into();
    for (term, (shard, step)) in (1..).zip(steps) {
        let mut log = store(&engine, shard);
        let model = models.get_mut(&shard).unwrap();
        match step {
            Step::Append(count, bytes) => {
                let new =
                    (model.next()..model.next() + count).map(|index| entry(term, index, bytes)).collect::<Vec<_>>();
                // Unacknowledged on purpose: the next step meets it in the queue.
                drop(submit(&mut log, new.clone()).await);
                model.entries.extend(new.into_iter().map(|entry| (entry.log_id.index, entry)));
            }
            Step::Truncate(back) => {
                let keep = model.next().saturating_sub(back);
                let last = keep.checked_sub(1).and_then(|last| model.entries.get(&last)).map(|entry| entry.log_id);
                log.truncate_after(last.or(model.purged)).await.unwrap();
                let first = last.or(model.purged).map_or(0, |id| id.index + 1);
                model.entries.retain(|index, _| *index < first);
            }
            Step::Purge(ahead) => {
                let upto = log_id(term, model.purged.map_or(0, |id| id.index + 1) + ahead);
                let upto = model.entries.get(&upto.index).map_or(upto, |entry| entry.log_id);
                log.purge(upto).await.unwrap();
                model.entries.retain(|index, _| *index > upto.index);
                model.purged = Some(upto);
            }
            Step::Vote => {
                log.save_vote(&vote(term)).await.unwrap();
                model.vote = Some(vote(term));
            }
            Step::Committed => {
                let last = model.entries.last_key_value().map(|(_, entry)| entry.log_id);
                log.save_committed(last).await.unwrap();
                model.committed = last;
            }
            Step::Destroy => {
                engine.destroy(ShardId(shard)).await.unwrap();
                *model = Model::default();
            }
            Step::Reopen => {
                engine.close().await;
                engine = open_small(dir.path());
            }
        }
        for (shard, model) in &models {
            assert_eq!(found(&engine, *shard).await, *model);
        }
    }
    engine.close().await;
    let engine = open_small(dir.path());
    for (shard, model) in &models {
        assert_eq!(found(&engine, *shard).await, *model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_log_holds_what_the_plainest_model_holds_before_and_after_restarts(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
