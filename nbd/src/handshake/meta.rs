//! Listing and selecting metadata contexts.
//!
//! A selection belongs to one export, by the name under which it was made, and every attempt to select replaces the
//! one before, also an attempt that fails: [`Negotiation::answer`] has dropped it by the time the option is read.

use super::Negotiation;
use crate::codec::{MetaQuery, ReplyStyle, put_meta_context};
use crate::export::OpenError;
use crate::meta::{BadQueries, CONTEXTS_MAX, Named, Purpose, Queries, Selected};
use crate::protocol::{option, reply};
use crate::transport::Transport;

/// Queries of one option; more are answered `TOO_BIG`.
const QUERIES_MAX: usize = 1024;

/// What a client selected last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Selection {
    export: String,
    contexts: Vec<Selected>,
}

impl<S: Transport> Negotiation<'_, S> {
    /// Answers either option into `out`.
    pub(super) async fn meta_context(&mut self, option: u32, data: &[u8]) {
        let purpose = if option == option::SET_META_CONTEXT {
            Purpose::Select
        } else {
            Purpose::List
        };
        match self.find_contexts(purpose, data).await {
            Ok((export, found)) => {
                let contexts = Selected::all(&found);
                for (Named { name, .. }, selected) in found.iter().zip(&contexts) {
                    let id = match purpose {
                        Purpose::List => 0,
                        Purpose::Select => selected.id,
                    };
                    put_meta_context(&mut self.out, option, id, name);
                }
                self.reply(option, reply::ACK, "");
                if purpose == Purpose::Select {
                    self.selection = Some(Selection { export, contexts });
                }
            }
            Err((kind, text)) => self.reply(option, kind, &text),
        }
    }

    async fn find_contexts(
        &mut self,
        purpose: Purpose,
        data: &[u8],
    ) -> Result<(String, Vec<Named>), (u32, String)> {
        if self.replies == ReplyStyle::Simple {
            let text = "negotiate structured replies or extended headers first";
            return Err((reply::ERR_INVALID, text.to_owned()));
        }
        let query =
            MetaQuery::decode(data).map_err(|error| (reply::ERR_INVALID, error.to_string()))?;
        if query.queries.len() > QUERIES_MAX {
            return Err((reply::ERR_TOO_BIG, "too many queries".to_owned()));
        }
        let queries = Queries::new(&query.queries).map_err(unanswered)?;
        let refused = |error: OpenError| (super::refusal(&error), error.to_string());
        let export = self.resolve(&query.export).await.map_err(refused)?;
        self.describe_resolved(&export).await.map_err(refused)?;
        let now = if queries.are_of_changes(purpose) {
            let asking = self.exports.change_point(&export, self.peer);
            let told = self.ask(asking).await.unwrap_or_else(super::too_slow);
            told.map_err(refused)?
        } else {
            None
        };
        let found = queries.find(purpose, now).map_err(unanswered)?;
        Ok((export, found))
    }

    /// The contexts that hold once `export` is chosen.
    pub(super) fn contexts_of(&self, export: &str) -> Vec<Selected> {
        match &self.selection {
            Some(selection) if selection.export == export => selection.contexts.clone(),
            _ => Vec::new(),
        }
    }
}

fn unanswered(why: BadQueries) -> (u32, String) {
    match why {
        BadQueries::Malformed => {
            let text = "a query is a namespace, a colon and a leaf";
            (reply::ERR_INVALID, text.to_owned())
        }
        BadQueries::TooMany => {
            let text = format!("more than {CONTEXTS_MAX} contexts");
            (reply::ERR_TOO_BIG, text)
        }
    }
}
