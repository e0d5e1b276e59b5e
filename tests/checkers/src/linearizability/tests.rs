use super::*;
use crate::history::{Mode, Versioned};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const UNSURE: i64 = i64::MAX;

fn step(invoke: i64, complete: i64, action: Action<'_>) -> Step<'_> {
    let fate = if complete == UNSURE { Fate::Unknown } else { Fate::Applied };
    Step { invoke, complete, action, fate }
}

fn failed(invoke: i64, complete: i64, action: Action<'_>) -> Step<'_> {
    Step { fate: Fate::NotApplied, ..step(invoke, complete, action) }
}

fn write(value: &str) -> Action<'_> {
    Action::Write(Some(value))
}

fn read(value: &str) -> Action<'_> {
    Action::Read(Some(value))
}

const ABSENT: Action<'_> = Action::Read(None);

fn swap<'h>(from: &'h str, to: &'h str) -> Action<'h> {
    Action::Swap(Some(from), to)
}

/// Both algorithms agree that an order explains the answers.
#[track_caller]
fn explained(steps: &[Step<'_>]) {
    assert_eq!(zones::check(steps), Ok(()));
    assert_eq!(wgl::check(steps, STEPS_MAX), wgl::Answer::Linearizable);
}

/// Both algorithms agree that none does.
#[track_caller]
fn broken(steps: &[Step<'_>]) {
    assert!(matches!(zones::check(steps), Err(zones::Fault::Violated(_))), "{:?}", zones::check(steps));
    assert_eq!(wgl::check(steps, STEPS_MAX), wgl::Answer::Not);
}

#[test]
fn writes_and_reads_one_after_the_other_are_explained() {
    explained(&[]);
    explained(&[step(1, 2, ABSENT), step(3, 4, write("a")), step(5, 6, read("a")), step(7, 8, write("b"))]);
}

#[test]
fn a_read_during_a_write_may_see_either() {
    for seen in [read("a"), read("b")] {
        explained(&[step(1, 2, write("a")), step(3, 9, write("b")), step(5, 6, seen)]);
    }
}

#[test]
fn a_stale_read_is_caught() {
    broken(&[step(1, 2, write("a")), step(3, 4, write("b")), step(5, 6, read("a"))]);
    broken(&[step(1, 2, write("a")), step(3, 4, ABSENT)]);
}

#[test]
fn a_read_that_goes_back_is_caught_even_while_the_write_runs() {
    broken(&[step(1, 2, write("a")), step(3, 20, write("b")), step(5, 6, read("b")), step(7, 8, read("a"))]);
}

#[test]
fn a_read_of_what_is_not_written_yet_is_caught() {
    broken(&[step(1, 2, read("a")), step(3, 4, write("a"))]);
}

#[test]
fn a_value_from_nowhere_is_caught() {
    broken(&[step(1, 2, write("a")), step(3, 4, read("b"))]);
}

#[test]
fn a_lost_write_is_caught() {
    broken(&[step(1, 2, write("a")), step(3, 4, write("b")), step(5, 6, read("a")), step(7, 8, read("a"))]);
}

#[test]
fn a_write_of_unknown_outcome_may_take_effect_late_or_never() {
    let unknown = step(1, UNSURE, write("a"));
    explained(&[unknown.clone(), step(3, 4, ABSENT), step(5, 6, ABSENT)]);
    explained(&[unknown.clone(), step(3, 4, ABSENT), step(5, 6, read("a"))]);
    explained(&[unknown.clone(), step(3, 4, write("b")), step(5, 6, read("b")), step(7, 8, read("a"))]);
    broken(&[unknown.clone(), step(5, 6, read("a")), step(7, 8, ABSENT)]);
    broken(&[unknown, step(5, 6, read("a")), step(7, 8, write("b")), step(9, 10, read("b")), step(11, 12, read("a"))]);
}

#[test]
fn a_write_that_was_not_applied_is_caught_if_it_is_seen() {
    explained(&[failed(1, 2, write("a")), step(3, 4, ABSENT)]);
    broken(&[failed(1, 2, write("a")), step(3, 4, read("a"))]);
    broken(&[failed(1, 2, write("a")), step(3, 4, swap("a", "b"))]);
}

#[test]
fn compare_and_sets_form_a_chain() {
    explained(&[
        step(1, 9, write("a")),
        step(1, 9, swap("b", "c")),
        step(1, 9, swap("a", "b")),
        step(10, 11, read("c")),
    ]);
    explained(&[step(1, 2, Action::Swap(None, "a")), step(3, 4, read("a"))]);
}

#[test]
fn two_compare_and_sets_of_the_same_value_are_caught() {
    broken(&[step(1, 2, write("a")), step(3, 9, swap("a", "b")), step(3, 9, swap("a", "c"))]);
    broken(&[step(3, 9, Action::Swap(None, "b")), step(3, 9, Action::Swap(None, "c"))]);
}

#[test]
fn a_compare_and_set_that_did_not_see_the_write_before_it_is_caught() {
    broken(&[step(1, 2, write("a")), step(3, 4, write("b")), step(5, 6, swap("a", "c"))]);
}

#[test]
fn a_write_between_the_two_halves_of_a_compare_and_set_is_caught() {
    // b must lie after a's last read and before c, but a and c stand next to each other.
    broken(&[
        step(1, 2, write("a")),
        step(3, 4, read("a")),
        step(5, 6, write("b")),
        step(7, 8, read("b")),
        step(3, 20, swap("a", "c")),
        step(9, 10, read("c")),
    ]);
}

#[test]
fn a_compare_and_set_of_unknown_outcome_counts_if_its_value_was_seen() {
    let unknown = step(3, UNSURE, swap("a", "b"));
    explained(&[step(1, 2, write("a")), unknown.clone(), step(5, 6, read("a"))]);
    explained(&[step(1, 2, write("a")), unknown.clone(), step(5, 6, read("b"))]);
    explained(&[step(1, 2, write("a")), unknown.clone(), step(5, 6, swap("b", "c"))]);
    broken(&[step(1, 2, write("a")), unknown, step(5, 6, read("b")), step(7, 8, read("a"))]);
}

#[test]
fn compare_and_sets_in_a_circle_are_caught() {
    broken(&[step(1, 2, swap("a", "b")), step(1, 2, swap("b", "a"))]);
}

#[test]
fn a_refusal_although_the_key_was_as_expected_is_caught() {
    broken(&[step(1, 2, write("a")), step(3, 4, Action::Never)]);
}

#[test]
fn deletes_and_repeated_values_are_left_to_the_search() {
    let steps = [step(1, 2, write("a")), step(3, 4, Action::Write(None)), step(5, 6, read("a"))];
    assert_eq!(zones::check(&steps), Err(zones::Fault::Unfit));
    assert!(check_key(&steps).is_err());
    let steps = [step(1, 2, write("a")), step(3, 4, Action::Write(None)), step(5, 6, ABSENT), step(7, 8, write("a"))];
    assert!(check_key(&steps).is_ok());
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let names: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let mut steps: Vec<Step<'_>> = names.iter().map(|name| step(1, 100, write(name))).collect();
    steps.push(step(200, 201, read("nothing")));
    assert_eq!(wgl::check(&steps, 1000), wgl::Answer::Undecided);
}

/// Runs operations against a real register, each at one moment between its begin and its end, and then perhaps spoils
/// what one of them saw.
fn random(random: &mut SmallRng, names: &[String]) -> Vec<Step<'static>> {
    let names: Vec<&'static str> = names.iter().map(|name| &*Box::leak(name.clone().into_boxed_str())).collect();
    let count = random.random_range(2..9);
    let mut moments: Vec<i64> = (0..count).map(|_| random.random_range(0..12)).collect();
    moments.sort();
    let mut register: Option<&'static str> = None;
    let mut steps = vec![];
    for (moment, name) in moments.iter().zip(names) {
        let (invoke, complete) = (moment - random.random_range(0..4), moment + random.random_range(0..4));
        let unsure = random.random_bool(0.2);
        let action = match random.random_range(0..3) {
            0 => Action::Read(register),
            1 => Action::Write(Some(name)),
            _ => Action::Swap(register, name),
        };
        let applied = !unsure || random.random_bool(0.5);
        match action {
            Action::Write(value) if applied => register = value,
            Action::Swap(_, value) if applied => register = Some(value),
            Action::Read(_) | Action::Never | Action::Write(_) | Action::Swap(..) => {}
        }
        if !(unsure && matches!(action, Action::Read(_))) {
            steps.push(step(invoke, if unsure { UNSURE } else { complete }, action));
        }
    }
    steps
}

fn spoil(random: &mut SmallRng, steps: &mut [Step<'static>]) {
    let written: Vec<Option<&'static str>> = steps
        .iter()
        .filter_map(|step| match step.action {
            Action::Write(value) => Some(value),
            Action::Swap(_, value) => Some(Some(value)),
            Action::Read(_) | Action::Never => None,
        })
        .chain([None])
        .collect();
    for _ in 0..random.random_range(1..3) {
        let other = written[random.random_range(0..written.len())];
        let place = random.random_range(0..steps.len());
        let step = &mut steps[place];
        step.action = match step.action {
            Action::Read(_) => Action::Read(other),
            Action::Swap(_, value) => Action::Swap(other, value),
            action @ (Action::Write(_) | Action::Never) => action,
        };
    }
}

#[test]
fn both_algorithms_agree_on_random_histories() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let names: Vec<String> = (0..9).map(|number| format!("v{number}")).collect();
    let (mut kept, mut violated) = (0, 0);
    for round in 0..20_000 {
        let mut steps = random(&mut rng, &names);
        if steps.is_empty() {
            continue;
        }
        let spoiled = round % 4 != 0;
        if spoiled {
            spoil(&mut rng, &mut steps);
        }
        let search = wgl::check(&steps, STEPS_MAX);
        let fast = zones::check(&steps);
        let agree = match search {
            wgl::Answer::Linearizable => fast == Ok(()),
            wgl::Answer::Not => matches!(fast, Err(zones::Fault::Violated(_))),
            wgl::Answer::Undecided => false,
        };
        assert!(agree, "seed {seed}, round {round}: search {search:?}, zones {fast:?}, of {steps:#?}");
        assert!(spoiled || fast == Ok(()), "seed {seed}, round {round}: {fast:?} of a real register: {steps:#?}");
        if fast.is_ok() { kept += 1 } else { violated += 1 }
    }
    assert!(kept > 2_000 && violated > 2_000, "one-sided: {kept} kept, {violated} violated");
}

fn operation(invoke: u64, complete: u64, call: Call, outcome: Outcome) -> Operation {
    Operation { process: 0, shard: None, invoke, complete: Some(complete), call, outcome }
}

fn wrote(invoke: u64, complete: u64, value: &str) -> Operation {
    let call = Call::Write { key: "k".into(), value: value.into() };
    operation(invoke, complete, call, Outcome::Written { version: 1 })
}

fn found(value: &str) -> Outcome {
    Outcome::Found { entry: Some(Versioned { value: value.into(), version: 1 }) }
}

fn violations(operations: Vec<Operation>) -> usize {
    check(&History { operations, ..History::default() }).violations.len()
}

#[test]
fn a_stale_read_is_judged_by_its_bound() {
    const MS: u64 = 1_000_000;
    let read = |max_ms| {
        let call = Call::Read { key: "k".into(), mode: Mode::Stale { max_ms } };
        vec![wrote(1, 2, "a"), wrote(10 * MS, 11 * MS, "b"), operation(20 * MS, 21 * MS, call, found("a"))]
    };
    assert_eq!(violations(read(8)), 1, "older than its bound");
    assert_eq!(violations(read(10)), 0);
    assert_eq!(violations(read(0)), 0, "no bound");
}

#[test]
fn lease_reads_and_refusals_are_judged_as_linearizable() {
    let lease = Call::Read { key: "k".into(), mode: Mode::Lease };
    assert_eq!(violations(vec![wrote(1, 2, "a"), wrote(3, 4, "b"), operation(5, 6, lease, found("a"))]), 1);
    let cas = || Call::CompareAndSet { key: "k".into(), expect: Some("z".into()), set: "c".into() };
    let refused = |value: &str| Outcome::Refused { current: Some(Versioned { value: value.into(), version: 1 }) };
    assert_eq!(violations(vec![wrote(1, 2, "a"), wrote(3, 4, "b"), operation(5, 6, cas(), refused("a"))]), 1);
    assert_eq!(violations(vec![wrote(1, 2, "a"), wrote(3, 4, "b"), operation(5, 6, cas(), refused("b"))]), 0);
    assert_eq!(violations(vec![wrote(1, 2, "z"), operation(5, 6, cas(), refused("z"))]), 1);
}

#[test]
fn keys_of_a_batch_and_of_a_read_of_many_are_judged_each() {
    let call = Call::WriteMany { entries: vec![("k".into(), "a".into()), ("l".into(), "a".into())] };
    let batch = operation(1, 2, call, Outcome::Written { version: 1 });
    let read = |entries: Vec<&str>| {
        let entry = |key: &str| crate::history::Entry { key: key.into(), value: "a".into(), version: 1 };
        let call = Call::ReadMany { keys: vec!["k".into(), "l".into()], mode: Mode::Linearizable };
        operation(3, 4, call, Outcome::Listed { entries: entries.into_iter().map(entry).collect() })
    };
    assert_eq!(violations(vec![batch.clone(), read(vec!["k", "l"])]), 0);
    assert_eq!(violations(vec![batch, read(vec!["k"])]), 1);
}
