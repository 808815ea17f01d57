//! Runs seeds: one, many, with or without a planted mistake. A panic of the code under test is a violation.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use mainstay_replication::{Mistake, Mistakes};

use crate::properties::{Property, Violation};
use crate::scenario::Scenario;
use crate::trace::Trace;
use crate::world::{Report, World};

/// What to run beside the seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A planted mistake.
    pub mistake: Option<Mistake>,
    /// Keep the newest events as text.
    pub keep: bool,
    /// Print every event.
    pub print: bool,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

static HOOK: Once = Once::new();

/// Runs one seed to its end.
#[must_use]
pub fn run_seed(seed: u64, options: Options) -> Report {
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANIC.with(|text| *text.borrow_mut() = info.to_string());
        }));
    });
    let mistakes = options.mistake.map_or(Mistakes::NONE, Mistakes::only);
    let scenario = Scenario::new(seed, mistakes);
    let mut world = World::new(scenario, Trace::new(options.keep, options.print));
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(report) => report,
        Err(_) => {
            let text = PANIC.with(|text| text.borrow().clone());
            let lines = world.trace.lines().map(str::to_owned).collect();
            let (hash, events) = (world.trace.hash(), world.trace.events());
            Report {
                violation: Some(Violation {
                    property: Property::Assertion,
                    text,
                }),
                hash,
                events,
                injected: world.injected.clone(),
                promotions: 0,
                changes: 0,
                answered: 0,
                reads: 0,
                virtual_ns: world.executor.now(),
                lines,
            }
        }
    }
}

/// The first of `seeds` at which a planted mistake is caught.
#[must_use]
pub fn first_catch(
    mistake: Mistake,
    seeds: impl IntoIterator<Item = u64>,
) -> Option<(u64, Violation)> {
    for seed in seeds {
        let options = Options {
            mistake: Some(mistake),
            ..Options::default()
        };
        if let Some(violation) = run_seed(seed, options).violation {
            return Some((seed, violation));
        }
    }
    None
}
