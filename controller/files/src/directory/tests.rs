//! A directory over time: what goes, what stays, and what is said.

use super::*;

fn namespace(name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n---\n"
    )
}

/// Feeds files to a directory; answers with events (`+a`, `-a`) and problems.
fn update(directory: &mut Directory, files: &[(&str, String)]) -> (Vec<String>, Vec<String>) {
    let files = files
        .iter()
        .map(|(name, text)| (PathBuf::from(name), FileContent::Text(text.clone())));
    let (events, problems) = directory.update(files.collect());
    let events = events.into_iter().map(|event| match event {
        Event::Applied(object) => format!("+{}", object.key().name),
        Event::Deleted(key) => format!("-{}", key.name),
    });
    (
        events.collect(),
        problems.iter().map(Problem::to_string).collect(),
    )
}

fn both() -> String {
    namespace("a", "one") + &namespace("b", "one")
}

#[test]
fn events_are_what_differs() {
    let mut directory = Directory::new();
    assert_eq!(update(&mut directory, &[("x", both())]).0, ["+a", "+b"]);
    assert!(update(&mut directory, &[("x", both())]).0.is_empty());
    assert!(
        update(&mut directory, &[("x", format!("# said\n{}", both()))])
            .0
            .is_empty()
    );
    assert_eq!(
        update(&mut directory, &[("x", namespace("a", "two"))]).0,
        ["+a", "-b"]
    );
    assert_eq!(update(&mut directory, &[]).0, ["-a"]);
    assert!(directory.objects().is_empty());
}

#[test]
fn a_broken_object_stays_as_it_was_and_the_others_go_on() {
    let mut directory = Directory::new();
    update(
        &mut directory,
        &[("x", both()), ("y", namespace("c", "one"))],
    );
    let broken = namespace("a", "[]") + &namespace("b", "two");
    let (events, problems) = update(
        &mut directory,
        &[("x", broken), ("y", namespace("c", "two"))],
    );
    assert_eq!(events, ["+b", "+c"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("x:3:") && problems[0].contains("Namespace a: metadata.labels.l"),
        "{problems:?}"
    );
    assert_eq!(directory.objects().len(), 3);
    assert_eq!(
        update(
            &mut directory,
            &[("x", namespace("b", "two")), ("y", namespace("c", "two"))]
        )
        .0,
        ["-a"]
    );
}

#[test]
fn half_written_files_delete_nothing() {
    for half in [
        "",
        "  \n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, la",
        "apiVersion: v1\nkind: Name",
    ] {
        let mut directory = Directory::new();
        update(&mut directory, &[("x", both())]);
        let (events, problems) = update(&mut directory, &[("x", half.to_owned())]);
        assert!(
            events.is_empty() && problems.len() == 1 || half.ends_with("Name"),
            "{half:?}: {events:?} {problems:?}"
        );
        assert_eq!(
            update(&mut directory, &[("x", both())]),
            (Vec::new(), Vec::new()),
            "and it recovers"
        );
    }
}

#[test]
fn files_that_cannot_be_read_keep_their_objects() {
    for content in [
        FileContent::TooLong { bytes: 1 << 30 },
        FileContent::Unreadable("not UTF-8".to_owned()),
    ] {
        let mut directory = Directory::new();
        update(&mut directory, &[("x", both())]);
        let (events, problems) = directory.update(BTreeMap::from([("x".into(), content)]));
        assert!(
            events.is_empty() && problems.len() == 1,
            "{events:?} {problems:?}"
        );
        assert_eq!(directory.objects().len(), 2);
    }
}

#[test]
fn an_object_in_two_files_stays_with_the_first_and_both_are_named() {
    let mut directory = Directory::new();
    update(&mut directory, &[("y", namespace("a", "one"))]);
    let (events, problems) = update(
        &mut directory,
        &[("x", namespace("a", "two")), ("y", namespace("a", "one"))],
    );
    assert!(events.is_empty(), "who was there first stays");
    assert_eq!(
        problems,
        ["x:1:1: error: Namespace a: also defined in y:1, which is used; remove one of the two"]
    );
    let (events, problems) = update(&mut directory, &[("x", namespace("a", "two"))]);
    assert_eq!(
        (events, problems.len()),
        (vec!["+a".to_owned()], 0),
        "the other takes its place"
    );
}

#[test]
fn a_directory_is_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    fs::create_dir(dir.path().join("deeper")).unwrap();
    write("a.yaml", both().as_bytes());
    write("deeper/b.json", b"{}");
    write("notes.txt", b"not ours");
    write(".a.yaml.swp", b"not ours");
    write("c.yml", &[0xff, 0xfe]);
    write("d.yaml", &vec![b'#'; MAX_FILE_BYTES + 1]);
    let files = read_dir(dir.path()).unwrap();
    let names: Vec<_> = files
        .keys()
        .map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["a.yaml", "c.yml", "d.yaml", "deeper/b.json"]);
    let contents: Vec<_> = files.into_values().collect();
    assert!(matches!(contents[1], FileContent::Unreadable(_)));
    assert!(matches!(contents[2], FileContent::TooLong { .. }));
    assert!(read_dir(&dir.path().join("nowhere")).is_err());
}
