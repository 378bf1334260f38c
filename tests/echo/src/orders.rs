//! The order service of `examples/shop`: every page load counts a visit in Redis and writes and reads orders in
//! PostgreSQL, over connections opened for that request, so that one page exercises the whole path.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use http::StatusCode;
use karst_runtime::supervise::spawn_connection;

use crate::{
    describe::hostname,
    server::{Body, listen, serve_connection, text},
};

mod postgres;
mod redis;

/// Where the order service listens and what stands behind it.
#[derive(Args, Clone, Debug)]
pub(crate) struct OrdersArgs {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// HOST:PORT of Redis
    #[arg(long)]
    redis: String,
    /// HOST:PORT of PostgreSQL
    #[arg(long)]
    postgres: String,
    #[arg(long, default_value = "shop")]
    database: String,
    #[arg(long, default_value = "shop")]
    user: String,
    /// Milliseconds that one page may take
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
}

/// Serves until it is killed: `GET /healthz` says that the process lives, anything else is a page.
pub(crate) async fn run(args: OrdersArgs) -> anyhow::Result<()> {
    let listener = listen(args.port)?;
    let args = Arc::new(args);
    loop {
        let (stream, _remote) = listener.accept().await?;
        let args = Arc::clone(&args);
        spawn_connection("orders", async move {
            serve_connection(stream, move |req| {
                let (args, path) = (Arc::clone(&args), req.uri().path().to_owned());
                async move { respond(&args, &path).await }
            })
            .await;
        });
    }
}

async fn respond(args: &OrdersArgs, path: &str) -> http::Response<Body> {
    if path == "/healthz" {
        return text(StatusCode::OK, "ok\n");
    }
    let page = tokio::time::timeout(Duration::from_millis(args.timeout_ms), page(args)).await;
    match page
        .unwrap_or_else(|_elapsed| Err(anyhow::anyhow!("not done within {} ms", args.timeout_ms)))
    {
        Ok(page) => text(StatusCode::OK, page),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("orders: {error:#}\n")),
    }
}

async fn page(args: &OrdersArgs) -> anyhow::Result<String> {
    let visits = redis::increment(&args.redis, "visits")
        .await
        .context("Redis")?;
    let login = postgres::Login {
        addr: &args.postgres,
        user: &args.user,
        database: &args.database,
    };
    let mut database = postgres::Connection::open(&login)
        .await
        .context("PostgreSQL")?;
    // Two first requests at once would race in CREATE TABLE; the advisory lock makes them take turns. Sent one by one: in
    // one message they would be one transaction, unlocked before it is committed.
    for statement in [
        "SELECT pg_advisory_lock(7)",
        "CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, item text, at timestamptz DEFAULT now())",
        "SELECT pg_advisory_unlock(7)",
    ] {
        database
            .query(statement)
            .await
            .context("PostgreSQL: creating the table")?;
    }
    let insert =
        format!("INSERT INTO orders (item) VALUES ('order of visit {visits}') RETURNING id");
    let id = database
        .query(&insert)
        .await
        .context("PostgreSQL: writing the order")?
        .concat()
        .concat();
    let total = database
        .query("SELECT count(*) FROM orders")
        .await
        .context("PostgreSQL: reading")?
        .concat()
        .concat();
    Ok(format!(
        "shop: visit {visits}, order {id}, {total} orders so far (served by {})\n",
        hostname()
    ))
}
