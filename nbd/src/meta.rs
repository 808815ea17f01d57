//! Metadata contexts: which there are, and which of them queries name. Pure.
//!
//! | query | when listing | when selecting |
//! | --- | --- | --- |
//! | none at all | every context | nothing |
//! | `base:allocation` | that context | that context |
//! | `base:` | every context of `base` | nothing |
//! | `mainstay:`, `mainstay:changed-since/` | the changes since now | nothing |
//! | `mainstay:changed-since/LSN[@HISTORY]` | that context, if it can be answered | that context, if it can be answered |
//! | another leaf of either, another namespace | nothing | nothing |
//! | without a namespace before a colon | refused | refused |
//!
//! There are as many contexts of changes as there are points in the history of an export. A list names the one that nothing has
//! changed since: whoever copies the export afterwards selects it the next time.

use crate::export::ChangePoint;

/// A kind of fact about ranges of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MetaContext {
    /// `base:allocation`: what is stored, and what reads as zeroes.
    Allocation,
    /// `mainstay:changed-since/LSN@HISTORY`: what changed behind a point.
    ChangedSince(ChangePoint),
}

/// A context that a client selected, and its number on that connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Selected {
    /// Not zero, which replies to a listing have.
    pub(crate) id: u32,
    pub(crate) context: MetaContext,
}

/// A context, and the name under which it was asked for: a client looks for that very name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) context: MetaContext,
}

/// What the contexts found are wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    List,
    Select,
}

/// Why queries cannot be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadQueries {
    /// One is not of the form `namespace:leaf`.
    Malformed,
    /// They name more than [`CONTEXTS_MAX`] contexts.
    TooMany,
}

/// Contexts of one connection. Each is a lookup of its own in every status.
pub(crate) const CONTEXTS_MAX: usize = 16;

const ALLOCATION: &str = "base:allocation";
const BASE: &str = "base:";
const OURS: &str = "mainstay:";
const CHANGED_SINCE: &str = "mainstay:changed-since/";

/// Queries that are all of the form `namespace:leaf`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queries<'a>(&'a [String]);

impl<'a> Queries<'a> {
    pub(crate) fn new(queries: &'a [String]) -> Result<Self, BadQueries> {
        let formed = |query: &String| query.find(':').is_some_and(|at| at > 0);
        if queries.iter().all(formed) {
            Ok(Self(queries))
        } else {
            Err(BadQueries::Malformed)
        }
    }

    /// Whether an answer depends on where the history of the export stands.
    pub(crate) fn are_of_changes(self, purpose: Purpose) -> bool {
        let everything = purpose == Purpose::List && self.0.is_empty();
        everything || self.0.iter().any(|query| query.starts_with(OURS))
    }

    /// The contexts that they name, each once. `now` is where the history of the export stands, if it has one.
    pub(crate) fn find(
        self,
        purpose: Purpose,
        now: Option<ChangePoint>,
    ) -> Result<Vec<Named>, BadQueries> {
        let mut found: Vec<Named> = Vec::new();
        let mut add = |name: &str, context| {
            if found.iter().all(|known| known.name != name) {
                let name = name.to_owned();
                found.push(Named { name, context });
            }
        };
        let listing = purpose == Purpose::List;
        let all = listing && self.0.is_empty();
        let wildcard = |wildcards: &[&str]| {
            listing && self.0.iter().any(|query| wildcards.contains(&&**query))
        };
        if all || wildcard(&[BASE]) || self.0.iter().any(|query| query == ALLOCATION) {
            add(ALLOCATION, MetaContext::Allocation);
        }
        if let Some(now) = now {
            if all || wildcard(&[OURS, CHANGED_SINCE]) {
                let name = format!("{CHANGED_SINCE}{now}");
                add(&name, MetaContext::ChangedSince(now));
            }
            for query in self.0 {
                if let Some(point) = changed_since(query, now) {
                    add(query, MetaContext::ChangedSince(point));
                }
            }
        }
        if found.len() > CONTEXTS_MAX {
            return Err(BadQueries::TooMany);
        }
        Ok(found)
    }
}

impl Selected {
    /// Numbers what was found.
    pub(crate) fn all(found: &[Named]) -> Vec<Self> {
        let contexts = found.iter().map(|named| named.context);
        (1..)
            .zip(contexts)
            .map(|(id, context)| Self { id, context })
            .collect()
    }
}

/// The point that a query names, unless it is none of this history, or one that has not come yet: what it would tell is unknown.
fn changed_since(query: &str, now: ChangePoint) -> Option<ChangePoint> {
    let leaf = query.strip_prefix(CHANGED_SINCE)?;
    let (lsn, history) = match leaf.split_once('@') {
        None => (leaf, now.history),
        Some((lsn, history)) => {
            let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let formed = history.len() == 16 && history.bytes().all(digit);
            let parsed = u64::from_str_radix(history, 16).ok()?;
            (lsn, formed.then_some(parsed)?)
        }
    };
    let digits = !lsn.is_empty() && lsn.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (lsn == "0" || !lsn.starts_with('0'));
    let lsn = canonical.then_some(lsn)?.parse().ok()?;
    (history == now.history && lsn <= now.lsn).then_some(ChangePoint { history, lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: ChangePoint = ChangePoint {
        history: 0xab,
        lsn: 70,
    };

    fn names(
        purpose: Purpose,
        now: Option<ChangePoint>,
        queries: &[&str],
    ) -> Result<Vec<String>, BadQueries> {
        let queries: Vec<_> = queries.iter().map(|&query| query.to_owned()).collect();
        let found = Queries::new(&queries)?.find(purpose, now)?;
        Ok(found.into_iter().map(|named| named.name).collect())
    }

    #[test]
    fn table_of_queries() {
        let now = "mainstay:changed-since/70@00000000000000ab";
        let both = &["base:allocation", now][..];
        let one = &both[..1];
        let then = "mainstay:changed-since/7";
        let cases: [(&[&str], _, _); 10] = [
            (&[], both, &[][..]),
            (one, one, one),
            (&["base:"], one, &[]),
            (&["mainstay:"], &both[1..], &[]),
            (&["mainstay:changed-since/"], &both[1..], &[]),
            (&["mainstay:", "base:", now], both, &both[1..]),
            (&[then, then], &[then], &[then]),
            (&["mainstay:changed-since", "mainstay:no"], &[], &[]),
            (&["base:other", "x-y:", "qemu:z"], &[], &[]),
            (
                &["x:y", "base:allocation", "base:allocation", "base:"],
                one,
                one,
            ),
        ];
        for (queries, listed, selected) in cases {
            let found = |purpose| names(purpose, Some(NOW), queries).expect("well formed");
            assert_eq!(found(Purpose::List), listed, "{queries:?}");
            assert_eq!(found(Purpose::Select), selected, "{queries:?}");
        }
        for purpose in [Purpose::List, Purpose::Select] {
            for bad in [&["base"][..], &["base:allocation", ":x"], &[""]] {
                let found = names(purpose, Some(NOW), bad);
                assert_eq!(found, Err(BadQueries::Malformed), "{bad:?}");
            }
        }
    }

    #[test]
    fn an_export_without_a_history_has_no_changes() {
        let asked = ["mainstay:", "mainstay:changed-since/0", "base:allocation"];
        let found = names(Purpose::List, None, &asked);
        assert_eq!(found, Ok(vec![ALLOCATION.to_owned()]));
        assert_eq!(names(Purpose::List, None, &[]), found);
    }

    #[test]
    fn only_points_of_this_history_that_have_come_are_matched() {
        let history = "00000000000000ab";
        for (leaf, lsn) in [
            ("0".to_owned(), Some(0)),
            ("70".to_owned(), Some(70)),
            (format!("7@{history}"), Some(7)),
            ("71".to_owned(), None),
            (format!("71@{history}"), None),
            (format!("7@{}c", &history[1..]), None),
            (format!("7@{}", &history[1..]), None),
            (format!("7@0{history}"), None),
            (format!("7@{}", history.to_uppercase()), None),
            ("7@+0000000000000ab".to_owned(), None),
            ("7@".to_owned(), None),
            (format!("@{history}"), None),
            ("07".to_owned(), None),
            ("+7".to_owned(), None),
            ("-1".to_owned(), None),
            ("7 ".to_owned(), None),
            ("7/8".to_owned(), None),
            ("0x7".to_owned(), None),
            ("\u{663}".to_owned(), None),
            (format!("{}0", u64::MAX), None),
        ] {
            let query = format!("{CHANGED_SINCE}{leaf}");
            let found = changed_since(&query, NOW).map(|point| point.lsn);
            assert_eq!(found, lsn, "{leaf}");
        }
    }

    #[test]
    fn contexts_are_bounded_and_their_ids_unique_and_not_zero() {
        let point = |lsn| format!("{CHANGED_SINCE}{lsn}");
        let queries: Vec<_> = (0..CONTEXTS_MAX).map(point).collect();
        let find = |queries: &[String]| {
            let queries = Queries::new(queries).expect("well formed");
            queries.find(Purpose::Select, Some(NOW))
        };
        let ids: Vec<_> = Selected::all(&find(&queries).expect("not too many"))
            .into_iter()
            .map(|selected| selected.id)
            .collect();
        assert_eq!(ids, (1..=16).collect::<Vec<_>>());
        let more = [queries, vec![ALLOCATION.to_owned()]].concat();
        assert_eq!(find(&more), Err(BadQueries::TooMany));
    }

    #[test]
    fn the_history_is_asked_about_only_where_it_matters() {
        let of_changes = |purpose, queries: &[&str]| {
            let queries: Vec<_> = queries.iter().map(|&query| query.to_owned()).collect();
            let queries = Queries::new(&queries).expect("well formed");
            queries.are_of_changes(purpose)
        };
        assert!(of_changes(Purpose::List, &[]));
        assert!(!of_changes(Purpose::Select, &[]));
        for purpose in [Purpose::List, Purpose::Select] {
            assert!(of_changes(purpose, &["base:", "mainstay:x"]));
            assert!(!of_changes(purpose, &["base:", ALLOCATION, "x:mainstay:"]));
        }
    }
}
