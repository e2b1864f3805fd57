//! Tables that would wait apart, seen before they are delivered.

use config::ObjectStore as Config;
use connector::{Error, Table};
use object_store::path::Path;

use crate::error::RENAME;
use crate::format::Form;
use crate::partition::Places;

/// A name in a folder of this machine, in bytes.
const NAME: usize = 255;
/// What stands behind the longest of a stream's, which says whose it is, while it is written.
const BEHIND: usize = ".json#1".len();
/// A whole key in S3, Google Cloud Storage and Azure, in bytes.
const KEY: usize = 1024;

/// Which of these tables would be refused, whatever their rows are, and why.
pub fn refused(config: &Config, tables: &[Table]) -> Vec<Error> {
    let form = Form::new(config);
    let taken = tables.iter().filter_map(|table| form.refusal(table));
    taken.chain(tables.iter().filter_map(|table| too_long(config, &form, table))).collect()
}

fn too_long(config: &Config, form: &Form, table: &Table) -> Option<Error> {
    let stream = table.stream();
    let refused = if config.url.scheme() == "file" {
        let (length, most) = (stream.len(), NAME - BEHIND);
        let what = || format!("folder {stream} would have a name of {length} bytes, and a folder here takes {most}");
        (length > most).then(|| Error::halt(what()).hint(RENAME))
    } else {
        let prefix = Path::from_url_path(config.url.path()).ok()?;
        let length = prefix.parts().map(|part| part.as_ref().len() + 1).sum::<usize>() + shortest(&stream, table, form);
        let what = || format!("files of {stream} would have names of {length} bytes, and the store takes {KEY}");
        (length > KEY).then(|| Error::halt(what()).hint(format!("{RENAME}, or shorten the path in `url`")))
    };
    refused.map(|error| error.of_stream(&stream))
}

/// The shortest name of a file of a table.
fn shortest(stream: &str, table: &Table, form: &Form) -> usize {
    let folder = Places::of(table, form).map_or(0, |places| places.shortest() + 1);
    stream.len() + 1 + folder + 20 + "-".len() + 20 + ".".len() + form.suffix().len()
}

#[cfg(test)]
mod tests {
    use connector::{Column, Type};
    use object_store::local::LocalFileSystem;
    use storage::LogId;

    use super::*;
    use crate::error::of_table;
    use crate::manifest::claim;

    fn refusals(url: &str, more: &str, schema: &str, columns: &[&str]) -> Vec<String> {
        let text = format!(
            "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/shop\"\n\
             [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"{url}\"\n{more}"
        );
        let config = config::Config::from_text(std::path::Path::new("highwater.toml"), &text).unwrap();
        let config::Destination::ObjectStore(config) = &config.sinks["lake"].destination else { panic!("{text}") };
        let column = |(id, name): (usize, &&str)| Column {
            name: (*name).into(),
            ty: Type::Int,
            db_type: "int4".into(),
            nullable: true,
            id: id as i32,
        };
        let table = Table {
            source: "shop".into(),
            schema: schema.into(),
            name: "t".into(),
            kind: Default::default(),
            columns: columns.iter().enumerate().map(column).collect(),
            key: Vec::new(),
            full_identity: false,
        };
        refused(config, &[table]).iter().map(|error| format!("{error}: {}", error.remedy().unwrap())).collect()
    }

    #[test]
    fn a_column_beside_one_of_ours_is_refused() {
        for (prefix, column, refused) in
            [("_hw_", "_hw_op", true), ("_hw_", "_hw_opt", false), ("_x_", "_hw_op", false), ("_x_", "_x_before", true)]
        {
            let found = refusals("file:///lake", &format!("meta_prefix = \"{prefix}\""), "public", &["id", column]);
            assert_eq!(found.len(), usize::from(refused), "{prefix} {column}: {found:?}");
            assert!(found.iter().all(|found| found.contains(column) && found.contains("`meta_prefix`")), "{found:?}");
        }
    }

    #[test]
    fn a_name_is_measured_as_it_is_encoded_with_all_that_stands_around_it() {
        // `shop.` and `.t` are 7 bytes.
        let local = |bytes: usize| refusals("file:///lake", "", &"x".repeat(bytes - 7), &["id"]).len();
        assert_eq!((local(248), local(249)), (0, 1));
        let encoded = |letters: usize| refusals("file:///lake", "", &"ж".repeat(letters), &["id"]).len();
        assert_eq!((encoded(40), encoded(41)), (0, 1));
        let key = |prefix: usize, more: &str| {
            let url = format!("s3://bucket/{}", "p".repeat(prefix));
            refusals(&url, more, "public", &["id"]).len()
        };
        // `/shop.public.t/`, two offsets and what is between them and `parquet`.
        let fits = 1024 - 15 - 42 - 7;
        assert_eq!((key(fits, ""), key(fits + 1, "")), (0, 1));
        let avro = "format = \"avro\"";
        assert_eq!((key(fits + 3, avro), key(fits + 4, avro)), (0, 1));
        let day = "partition = { by = \"commit_date\" }";
        let fits = fits - "_hw_commit_date=2024-02-29/".len();
        assert_eq!((key(fits, day), key(fits + 1, day)), (0, 1));
        assert!(refusals("az://c", "", &"ж".repeat(150), &["id"]).is_empty());
    }

    #[tokio::test]
    async fn a_folder_of_this_machine_takes_as_long_a_name_as_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let claim = async |bytes| {
            let stream = "x".repeat(bytes);
            claim(&store, &stream, LogId([7; 16]), "lake/shop").await.map_err(|error| of_table(error, &stream))
        };
        claim(NAME - BEHIND).await.unwrap();
        let error = claim(NAME - BEHIND + 1).await.unwrap_err();
        assert!(error.stream().is_some(), "{}", error.chain());
    }
}
