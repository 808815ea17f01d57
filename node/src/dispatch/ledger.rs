//! `mainstay ledger`, from the command line's arguments.

use std::io;

use anyhow::Context as _;

use crate::cli::ledger::{ImportArgs, LedgerArgs, LedgerCommand, PostArgs};
use crate::commands::ledger::rows::{self, Direction, Mapping};
use crate::commands::ledger::transfer::{Transfer, parse_amount};
use crate::commands::ledger::{self, Import, Ledger};

pub(super) async fn run(command: LedgerCommand) -> anyhow::Result<()> {
    let out = &mut io::stdout();
    match command {
        LedgerCommand::Import(args) => import(args).await,
        LedgerCommand::Post(args) => post(args).await,
        LedgerCommand::Balance(args) => {
            let endpoints = super::endpoints(&args.ledger.cluster)?;
            ledger::balance(&of(&args.ledger), &args.accounts, endpoints, out).await
        }
        LedgerCommand::Statement(args) => {
            let endpoints = super::endpoints(&args.ledger.cluster)?;
            ledger::statement(&of(&args.ledger), &args.account, endpoints, out).await
        }
        LedgerCommand::Verify(args) => {
            let endpoints = super::endpoints(&args.ledger.cluster)?;
            ledger::verify(&of(&args.ledger), endpoints, out).await
        }
    }
}

fn of(args: &LedgerArgs) -> Ledger {
    Ledger {
        volume: args.volume.to_string(),
        snapshot: args.snapshot.clone(),
        decimals: args.decimals,
        json: args.json,
    }
}

async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let ledger = of(&args.ledger);
    let (credit, debit) = (args.credit, args.debit);
    let direction = args.r#type.map(|column| Direction {
        column,
        credit,
        debit,
    });
    let import = Import {
        mapping: Mapping {
            account: args.account,
            amount: args.amount,
            direction,
            date: args.date,
            key: args.key,
            counter: args.counter,
            source: args.source.unwrap_or_else(|| rows::source_of(&args.file)),
            delimiter: args.delimiter,
            decimals: ledger.decimals,
        },
        file: args.file,
        in_flight: args.in_flight as usize,
        quiet: args.quiet,
    };
    let endpoints = super::endpoints(&args.ledger.cluster)?;
    ledger::import(&ledger, &import, endpoints, &mut io::stdout()).await
}

async fn post(args: PostArgs) -> anyhow::Result<()> {
    let ledger = of(&args.ledger);
    let amount = parse_amount(&args.amount, ledger.decimals).map_err(anyhow::Error::msg)?;
    let key = args
        .key
        .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    let transfer = Transfer {
        key,
        from: args.from,
        to: args.to,
        amount,
        date: args.date,
        memo: args.memo,
    };
    let endpoints = super::endpoints(&args.ledger.cluster)?;
    let posted = ledger::post(&ledger, &transfer, endpoints, &mut io::stdout()).await;
    posted.with_context(|| format!("transfer with the key {:?}", transfer.key))
}
