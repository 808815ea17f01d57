//! Everything that is measured, running side by side for the whole run: idle but for whoever's turn it is.

use std::path::Path;

use anyhow::Context;
use mainstay_benches::disk::Method;
use mainstay_benches::etcd::{self, Etcd};
use mainstay_benches::floor::Floor;
use mainstay_benches::postgres::{self, Postgres};
use mainstay_benches::product::Product;

pub(crate) struct Rig {
    pub(crate) floor: Floor,
    pub(crate) product: Product,
    pub(crate) etcd: Option<Etcd>,
    pub(crate) postgres: Option<Postgres>,
}

impl Rig {
    pub(crate) async fn start(program: &Path, dir: &Path, others: bool) -> anyhow::Result<Self> {
        let floor = Floor::start(&std::env::current_exe()?, dir, Method::Fdatasync)?;
        let product = Product::start(program, dir, String::new()).await?;
        let (mut etcd, mut postgres) = (None, None);
        if others {
            if etcd::installed() {
                etcd = Some(Etcd::start(dir).await.context("etcd as a reference")?);
            } else {
                eprintln!(
                    "etcd is not installed (apt-get install {}): no comparison with it",
                    etcd::PACKAGE
                );
            }
            if let Some(bin) = postgres::installed() {
                let started = Postgres::start(bin, dir);
                postgres = Some(started.context("PostgreSQL as a reference")?);
            } else {
                eprintln!(
                    "PostgreSQL is not installed (apt-get install {}): no comparison with it",
                    postgres::PACKAGE
                );
            }
        }
        Ok(Self {
            floor,
            product,
            etcd,
            postgres,
        })
    }
}
