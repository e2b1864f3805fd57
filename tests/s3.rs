//! S3, and what happens while it is away.

use highwater_tests::{Daemon, Postgres, S3, folder, landed, until};

use crate::spine::capturing;

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_goes_on_while_the_store_is_down_and_delivery_resumes_by_itself() {
    let postgres = Postgres::new(17).await;
    let client = std::sync::Arc::new(postgres.client().await);
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, filler text)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let mut s3 = S3::start().await;
    s3.down();
    let folder = folder("s3-down");
    let config = format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n\
         [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"s3://lake/cdc\"\noptions = {}\n\
         cut = {{ bytes = \"4MiB\", age = \"300ms\" }}\n",
        postgres.url(),
        postgres.database,
        s3.options()
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    for i in 0..20 {
        client
            .batch_execute(&format!(
                "INSERT INTO t SELECT {i} * 10000 + g, repeat('x', 200) FROM generate_series(1, 10000) g"
            ))
            .await
            .unwrap();
    }
    let wrote: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    until(30, "confirmed_flush_lsn goes on with the store down", || {
        let (client, wrote) = (client.clone(), wrote.clone());
        async move {
            let sql = "SELECT bool_or(confirmed_flush_lsn >= $1::text::pg_lsn) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND database = current_database()";
            client.query_one(sql, &[&wrote]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
        }
    })
    .await;
    let status = daemon.status();
    assert_eq!(status["sinks"][0]["health"], "retrying", "{status}");
    assert_eq!(status["sources"][0]["health"], "running", "{status}");
    assert!(status["sinks"][0]["problem"]["error"].is_string());
    let memory = daemon.peak_memory();
    assert!(memory < 256 << 20, "{memory} bytes");
    s3.up().await;
    let store = s3.store();
    until(60, "delivery resumes by itself", || {
        let store = store.clone();
        async move { landed(&store, "cdc/shop.public.t").await.len() == 200_000 }
    })
    .await;
    daemon.ends_well();
}
