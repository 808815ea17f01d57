//! The simulator itself: deterministic, clean on its first seeds, and able to find every planted mistake.

use mainstay_replication::Mistake;
use mainstay_sim::mistakes::CAUGHT;
use mainstay_sim::run::{Options, run_seed};

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..6 {
        let (first, second) = (
            run_seed(seed, Options::default()),
            run_seed(seed, Options::default()),
        );
        assert_eq!(
            (first.hash, first.events),
            (second.hash, second.events),
            "seed {seed}"
        );
    }
}

#[test]
fn the_first_seeds_hold() {
    for seed in 0..10 {
        let report = run_seed(seed, Options::default());
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[test]
fn every_mistake_has_a_seed_that_catches_it() {
    for mistake in Mistake::ALL {
        assert!(
            CAUGHT.iter().any(|(caught, _)| *caught == mistake),
            "{mistake:?}"
        );
    }
    // The promise is: within the first 2,000 seeds.
    assert!(CAUGHT.iter().all(|(_, seed)| *seed < 2_000));
}

#[test]
fn each_mistake_is_caught_by_its_seed_and_the_seed_is_clean_without_it() {
    for (mistake, seed) in CAUGHT {
        let options = Options {
            mistake: Some(mistake),
            ..Options::default()
        };
        assert!(
            run_seed(seed, options).violation.is_some(),
            "{mistake:?} with seed {seed}: if the schedule has changed, `mainstay-sim --mistake {mistake:?}` finds another"
        );
        let clean = run_seed(seed, Options::default());
        assert_eq!(clean.violation, None, "seed {seed} without {mistake:?}");
    }
}

#[test]
fn seeds_of_bugs_that_were_fixed_hold() {
    for line in include_str!("../regressions.txt").lines() {
        let Some(seed) = line
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
        else {
            continue;
        };
        let report = run_seed(seed, Options::default());
        assert_eq!(report.violation, None, "{line}");
    }
}
