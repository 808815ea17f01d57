//! Metadata contexts: which there are, and which of them queries name. Pure.
//!
//! | query | when listing | when selecting |
//! | --- | --- | --- |
//! | none at all | every context | nothing |
//! | `base:allocation` | that context | that context |
//! | `base:` | every context of `base` | nothing |
//! | another leaf of `base`, another namespace | nothing | nothing |
//! | without a namespace before a colon | refused | refused |

/// A kind of fact about ranges of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MetaContext {
    /// `base:allocation`: what is stored, and what reads as zeroes.
    Allocation,
}

/// What the contexts found are wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    List,
    Select,
}

/// A query that is not of the form `namespace:leaf`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadQuery;

impl MetaContext {
    pub(crate) const ALL: [Self; 1] = [Self::Allocation];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
        }
    }

    /// Its number on every connection that selected it. Not zero, which replies to a listing have.
    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
        }
    }

    pub(crate) fn by_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|context| context.id() == id)
    }

    /// The contexts that `queries` name, each once.
    pub(crate) fn find(purpose: Purpose, queries: &[String]) -> Result<Vec<Self>, BadQuery> {
        for query in queries {
            match query.split_once(':') {
                Some((namespace, _)) if !namespace.is_empty() => {}
                _ => return Err(BadQuery),
            }
        }
        let everything = purpose == Purpose::List && queries.is_empty();
        let named = |context: &Self| {
            everything || queries.iter().any(|query| context.matches(purpose, query))
        };
        Ok(Self::ALL.into_iter().filter(named).collect())
    }

    fn matches(self, purpose: Purpose, query: &str) -> bool {
        let wildcard = purpose == Purpose::List && query == "base:";
        wildcard || query == self.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_queries() {
        let all = vec![MetaContext::Allocation];
        let cases: [(&[&str], _, _); 8] = [
            (&[], Ok(all.clone()), Ok(vec![])),
            (&["base:allocation"], Ok(all.clone()), Ok(all.clone())),
            (&["base:"], Ok(all.clone()), Ok(vec![])),
            (&["base:other", "x-y:", "qemu:z"], Ok(vec![]), Ok(vec![])),
            (
                &["x:y", "base:allocation", "base:allocation", "base:"],
                Ok(all.clone()),
                Ok(all),
            ),
            (&["base"], Err(BadQuery), Err(BadQuery)),
            (&["base:allocation", ":x"], Err(BadQuery), Err(BadQuery)),
            (&[""], Err(BadQuery), Err(BadQuery)),
        ];
        for (queries, listed, selected) in cases {
            let queries: Vec<_> = queries.iter().map(|&query| query.to_owned()).collect();
            let found = |purpose| MetaContext::find(purpose, &queries);
            assert_eq!(found(Purpose::List), listed, "{queries:?}");
            assert_eq!(found(Purpose::Select), selected, "{queries:?}");
        }
    }

    #[test]
    fn ids_are_unique_and_not_zero() {
        for context in MetaContext::ALL {
            assert_ne!(context.id(), 0);
            assert_eq!(MetaContext::by_id(context.id()), Some(context));
        }
        assert_eq!(MetaContext::by_id(0), None);
    }
}
