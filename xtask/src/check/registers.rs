//! Registers are linearizable: judged by stateright's `LinearizabilityTester`, register by register.
//!
//! The tester tries orders one after another and copies what is left at every step, so it is given short pieces. Three steps make them, and
//! none changes the verdict (`docs/decisions/016-history-checkers.md` has the arguments). Every value is written once, on which they rest:
//!
//! 1. A write of unknown outcome whose value nobody read is left out. Removing it from any order of the operations leaves that order valid.
//! 2. One whose value was read took effect before the first read that returned it had ended: it gets that end.
//! 3. Where no operation is under way, everything before precedes everything after. There the history is cut; what is handed on is the
//!    set of values that the register may hold there: those that the tester accepts as the answer of one more read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, ensure};
use serde_json::Value;
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use super::history::{History, NEVER, Operation, Outcome};

/// More operations in one piece take the tester too long. A workload with fewer processes, a lower rate or more registers has shorter ones.
const PIECE_MAX: usize = 64;

/// What a register holds; zero is "nothing written yet".
type Held = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Write(Held),
    Read(Held),
}

/// One operation on one register.
#[derive(Debug, Clone, Copy)]
struct Step {
    process: u64,
    what: What,
    began: usize,
    ended: usize,
}

pub(super) fn violations(history: &History) -> anyhow::Result<Vec<String>> {
    let registers = history.parameter("registers")?;
    let (operations, last) = history
        .operations
        .split_at(history.operations.len().saturating_sub(1));
    ensure!(
        last.iter()
            .any(|last| last.f == "end" && matches!(last.outcome, Outcome::Ok(_))),
        "it does not end with the mark of its end"
    );
    let mut violations = Vec::new();
    let mut steps: BTreeMap<u64, Vec<Step>> = BTreeMap::new();
    for operation in operations {
        let register = operation.asked[0].as_u64();
        let register = register.with_context(|| format!("no register in {operation:?}"))?;
        ensure!(register < registers, "no register {register}");
        match step(operation) {
            Ok(Some(step)) => steps.entry(register).or_default().push(step),
            Ok(None) => {}
            Err(found) => violations.push(format!("register {register}: {found}")),
        }
    }
    for (register, steps) in steps {
        let judged = judge(steps).with_context(|| format!("register {register}"))?;
        violations.extend(judged.map(|found| format!("register {register}: {found}")));
    }
    Ok(violations)
}

/// `None` if it has no effect; an error in words if it contradicts itself.
fn step(operation: &Operation) -> Result<Option<Step>, String> {
    let what = match (operation.f.as_str(), &operation.outcome) {
        ("write", Outcome::Ok(_) | Outcome::Info) => What::Write(number(&operation.asked[1])?),
        ("read", Outcome::Ok(value)) => What::Read(number(&value[1])?),
        _ => return Ok(None),
    };
    Ok(Some(Step {
        process: operation.process,
        what,
        began: operation.began,
        ended: operation.ended,
    }))
}

fn number(value: &Value) -> Result<Held, String> {
    match value {
        Value::Null => Ok(0),
        value => value
            .as_u64()
            .ok_or_else(|| format!("a block holds {value}")),
    }
}

/// What is wrong with one register, if anything.
fn judge(mut steps: Vec<Step>) -> anyhow::Result<Option<String>> {
    if let Some(found) = settle_unknown(&mut steps) {
        return Ok(Some(found));
    }
    let mut held = BTreeSet::from([0]);
    for piece in pieces(&steps) {
        ensure!(
            piece.len() <= PIECE_MAX,
            "{} operations overlap: too many to be judged; use more --keys, a lower --rate or fewer --processes",
            piece.len()
        );
        let next = after(piece, &held);
        if next.is_empty() {
            return Ok(Some(format!(
                "not linearizable, holding one of {held:?} before {}",
                told(piece)
            )));
        }
        held = next;
    }
    Ok(None)
}

/// Steps 1 and 2. Answers with a read of something that cannot have been there, if there is one.
fn settle_unknown(steps: &mut Vec<Step>) -> Option<String> {
    let mut first_read: HashMap<Held, Step> = HashMap::new();
    for step in steps.iter() {
        if let What::Read(held) = step.what {
            let first = first_read.entry(held).or_insert(*step);
            if step.ended < first.ended {
                *first = *step;
            }
        }
    }
    let mut written: HashMap<Held, usize> = HashMap::from([(0, 0)]);
    for step in steps.iter_mut() {
        if let What::Write(value) = step.what {
            written.insert(value, step.began);
            if let Some(read) = first_read.get(&value).filter(|_| step.ended == NEVER) {
                step.ended = read.ended;
            }
        }
    }
    for (value, read) in &first_read {
        match written.get(value) {
            None => return Some(format!("{} returned {value}, which nobody wrote", of(read))),
            Some(began) if *began > read.ended => {
                return Some(format!(
                    "{} returned {value} before its write began",
                    of(read)
                ));
            }
            Some(_) => {}
        }
    }
    steps.retain(|step| step.ended != NEVER);
    None
}

/// Step 3: cuts where nothing is under way.
fn pieces(steps: &[Step]) -> Vec<&[Step]> {
    let mut pieces = Vec::new();
    let (mut from, mut last_end) = (0, 0);
    for (index, step) in steps.iter().enumerate() {
        if step.began > last_end && index > from {
            pieces.push(&steps[from..index]);
            from = index;
        }
        last_end = last_end.max(step.ended);
    }
    if from < steps.len() {
        pieces.push(&steps[from..]);
    }
    pieces
}

/// What the register may hold after `piece`, if it held one of `held` before.
fn after(piece: &[Step], held: &BTreeSet<Held>) -> BTreeSet<Held> {
    let written = piece.iter().filter_map(|step| match step.what {
        What::Write(value) => Some(value),
        What::Read(_) => None,
    });
    let candidates: BTreeSet<Held> = written.chain(held.iter().copied()).collect();
    let possible = |last: &Held| {
        let mut before = held.iter();
        before.any(|before| is_linearizable(piece, *before, *last))
    };
    candidates.into_iter().filter(possible).collect()
}

/// Asks the tester about `piece` between a value before it and one more read after it.
fn is_linearizable(piece: &[Step], before: Held, last: Held) -> bool {
    let mut events: Vec<(usize, bool, &Step)> = Vec::new();
    for step in piece {
        events.push((step.began, false, step));
        // One that took the end of a read comes before that read's end.
        events.push((step.ended, true, step));
    }
    events.sort_by_key(|(place, _, step)| (*place, matches!(step.what, What::Read(_))));
    let mut tester = LinearizabilityTester::new(Register(before));
    for (_, ends, step) in events {
        let taken = match (step.what, ends) {
            (What::Write(value), false) => tester.on_invoke(step.process, RegisterOp::Write(value)),
            (What::Write(_), true) => tester.on_return(step.process, RegisterRet::WriteOk),
            (What::Read(_), false) => tester.on_invoke(step.process, RegisterOp::Read),
            (What::Read(value), true) => tester.on_return(step.process, RegisterRet::ReadOk(value)),
        };
        taken.expect("a process does one thing at a time");
    }
    let read = tester.on_invret(u64::MAX, RegisterOp::Read, RegisterRet::ReadOk(last));
    read.expect("a process of its own").is_consistent()
}

fn told(piece: &[Step]) -> String {
    let steps: Vec<String> = piece.iter().map(of).collect();
    steps.join(", ")
}

fn of(step: &Step) -> String {
    let what = match step.what {
        What::Write(value) => format!("write {value}"),
        What::Read(value) => format!("read {value}"),
    };
    format!(
        "process {} {what} (lines {} to {})",
        step.process,
        step.began + 1,
        step.ended.saturating_add(1)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::history::testing::{self, Writer};
    use super::*;

    fn ended(history: &Writer) -> Writer {
        history.clone().ok(9, "end", json!(null), json!(null))
    }

    fn violations(history: &Writer) -> Vec<String> {
        ended(history).violations()
    }

    #[track_caller]
    fn shows(history: &Writer, words: &str) {
        testing::shows(&ended(history), words);
    }

    fn registers() -> Writer {
        Writer::new("registers", json!({ "registers": 2 }))
    }

    /// Two writes overlap, one of unknown outcome takes effect late, one never.
    fn good() -> Writer {
        registers()
            .ok(0, "read", json!([0, null]), json!([0, null]))
            .event("invoke", 1, "write", json!([0, 1]))
            .event("invoke", 2, "write", json!([0, 2]))
            .event("ok", 2, "write", json!([0, 2]))
            .event("ok", 1, "write", json!([0, 1]))
            .ok(0, "read", json!([0, null]), json!([0, 2]))
            .event("invoke", 1, "write", json!([0, 3]))
            .event("info", 1, "write", json!([0, 3]))
            .event("invoke", 2, "write", json!([0, 4]))
            .event("info", 2, "write", json!([0, 4]))
            .event("invoke", 5, "write", json!([0, 5]))
            .event("fail", 5, "write", json!([0, 5]))
            .ok(0, "read", json!([0, null]), json!([0, 2]))
            .ok(6, "write", json!([0, 6]), json!([0, 6]))
            .ok(0, "read", json!([0, null]), json!([0, 6]))
            .ok(0, "read", json!([0, null]), json!([0, 3]))
            .ok(0, "read", json!([0, null]), json!([0, 3]))
            .ok(0, "read", json!([1, null]), json!([1, null]))
    }

    #[test]
    fn late_lost_and_overlapping_writes_are_linearizable() {
        assert_eq!(violations(&good()), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_must_not_be_is_found() {
        let read = |process, value| {
            move |history: Writer| history.ok(process, "read", json!([0, null]), json!([0, value]))
        };
        shows(&read(0, 2)(good()), "not linearizable"); // a value that was overwritten
        shows(&read(0, 6)(good()), "not linearizable"); // 3 came after 6
        shows(&read(0, 5)(good()), "which nobody wrote"); // that write failed
        shows(&read(0, 99)(good()), "which nobody wrote");
        let early = registers()
            .ok(0, "read", json!([0, null]), json!([0, 1]))
            .ok(1, "write", json!([0, 1]), json!([0, 1]));
        shows(&early, "before its write began");
        let torn = good().ok(0, "read", json!([1, null]), json!([1, "torn: 1 and 2"]));
        shows(&torn, "a block holds \"torn: 1 and 2\"");
        let lost = registers().ok(1, "write", json!([0, 1]), json!([0, 1])).ok(
            0,
            "read",
            json!([0, null]),
            json!([0, null]),
        );
        shows(&lost, "not linearizable");
    }

    /// A write of unknown outcome takes effect once: seen, overwritten, and seen again is twice.
    #[test]
    fn an_unknown_write_that_takes_effect_twice_is_found() {
        let twice = registers()
            .event("invoke", 1, "write", json!([0, 1]))
            .event("info", 1, "write", json!([0, 1]))
            .ok(0, "read", json!([0, null]), json!([0, 1]))
            .ok(2, "write", json!([0, 2]), json!([0, 2]))
            .ok(0, "read", json!([0, null]), json!([0, 1]));
        shows(&twice, "not linearizable");
    }

    /// Which of two overlapping writes was last is open until a read says so, beyond the cut.
    #[test]
    fn what_a_cut_leaves_open_is_decided_behind_it() {
        let open = registers()
            .event("invoke", 1, "write", json!([0, 1]))
            .event("invoke", 2, "write", json!([0, 2]))
            .event("ok", 1, "write", json!([0, 1]))
            .event("ok", 2, "write", json!([0, 2]));
        for value in [1, 2] {
            let read =
                |history: Writer, value| history.ok(0, "read", json!([0, null]), json!([0, value]));
            let once = read(open.clone(), value);
            assert_eq!(violations(&once), Vec::<String>::new());
            shows(&read(once, 3 - value), "not linearizable");
        }
    }

    #[test]
    fn what_is_too_tangled_is_not_called_good() {
        let mut tangled = registers();
        for process in 0..=PIECE_MAX as u64 {
            tangled = tangled.event("invoke", process, "write", json!([0, process + 1]));
        }
        for process in 0..=PIECE_MAX as u64 {
            tangled = tangled.event("ok", process, "write", json!([0, process + 1]));
        }
        let judged = super::super::of(&ended(&tangled).history().expect("a history"));
        assert!(format!("{:#}", judged.expect_err("refused")).contains("too many to be judged"));
    }

    #[test]
    fn registers_without_their_end_are_not_judged() {
        let mut cut = ended(&good());
        let judged = |history: &Writer| super::super::of(&history.history().expect("a history"));
        assert!(judged(&cut).is_ok());
        cut.lines.pop();
        assert!(judged(&cut).is_err(), "the end is not known to be there");
        cut.lines.pop();
        assert!(judged(&cut).is_err(), "the end is not there");
        let early = ended(&good()).ok(0, "read", json!([1, null]), json!([1, null]));
        assert!(judged(&early).is_err(), "something comes behind the end");
        assert!(judged(&registers()).is_err(), "nothing is there");
    }
}
