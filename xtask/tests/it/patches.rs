//! Tests of `cargo xtask patches` on a made-up upstream.

use std::fs;
use std::process::Command;

use crate::support::{Fixture, MMAP, message, upstream};

#[test]
fn an_export_of_an_import_changes_nothing() {
    let fixture = Fixture::with_series();
    let before = fixture.patches();
    fixture.xtask(&["patches", "import"]).succeeds();
    fixture
        .xtask(&["patches", "export"])
        .succeeds()
        .says("nothing changed");
    assert_eq!(fixture.patches(), before);
    fs::remove_dir_all(fixture.work_tree()).unwrap();
    fixture.xtask(&["patches", "import"]).succeeds();
    fixture
        .xtask(&["patches", "export"])
        .succeeds()
        .says("nothing changed");
    assert_eq!(fixture.patches(), before);
}

#[test]
fn an_import_gives_the_same_commits_each_time() {
    let fixture = Fixture::with_series();
    fixture.xtask(&["patches", "import"]).succeeds();
    let first = fixture.git(&["rev-parse", "series"]);
    fs::remove_dir_all(fixture.work_tree()).unwrap();
    fixture.xtask(&["patches", "import"]).succeeds();
    assert_eq!(fixture.git(&["rev-parse", "series"]), first);
}

#[test]
fn an_export_is_the_same_under_a_hostile_git_configuration() {
    let fixture = Fixture::with_series();
    let before = fixture.patches();
    fixture.write(
        "hostile.gitconfig",
        "[diff]\n noprefix = true\n mnemonicPrefix = true\n context = 9\n algorithm = patience\n renames = copies\n external = false\n \
         indentHeuristic = false\n interHunkContext = 50\n relative = true\n colorMoved = zebra\n\
         [format]\n signature = mine\n numbered = true\n subjectPrefix = MINE\n attach = true\n thread = deep\n signOff = true\n \
         from = other@example.com\n headers = \"X-Mine: yes\"\n coverLetter = true\n suffix = .txt\n noprefix = true\n\
         [core]\n abbrev = 4\n autocrlf = true\n hooksPath = /nowhere\n quotePath = false\n[color]\n ui = always\n\
         [commit]\n gpgSign = true\n[am]\n threeWay = true\n keepcr = false\n[apply]\n whitespace = error\n\
         [i18n]\n logOutputEncoding = ISO-8859-1\n[mailinfo]\n scissors = true\n[log]\n showSignature = true\n follow = true\n",
    );
    let hostile = fixture.path("hostile.gitconfig");
    let env = [
        ("GIT_CONFIG_GLOBAL", hostile.to_str().unwrap()),
        ("GIT_DIR", "/nowhere"),
        ("GIT_INDEX_FILE", "/nowhere/index"),
        ("GIT_DIFF_OPTS", "--unified=7"),
        ("GIT_EXTERNAL_DIFF", "false"),
        ("GIT_COMMITTER_NAME", "Somebody Else"),
        ("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z"),
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "tr_TR.UTF-8"),
        ("TZ", "Pacific/Auckland"),
    ];
    fs::remove_dir_all(fixture.work_tree()).unwrap();
    fixture.xtask_with(&["patches", "import"], &env).succeeds();
    // The environment cannot disable a work tree's own configuration, so `xtask` must override it.
    let text =
        fixture.read("target/patches/llama.cpp/.git/config") + &fixture.read("hostile.gitconfig");
    fixture.write("target/patches/llama.cpp/.git/config", &text);
    fixture
        .xtask_with(&["patches", "export"], &env)
        .succeeds()
        .says("nothing changed");
    assert_eq!(fixture.patches(), before);
    fixture.xtask_with(&["patches", "check"], &env).succeeds();
}

#[test]
fn a_commit_that_touches_both_is_split_into_a_patch_and_a_file() {
    let fixture = Fixture::with_series();
    assert_eq!(
        fixture.read("patches/files/src/llama-ours.cpp"),
        "void call() {}\n"
    );
    let patch = fixture.read(&fixture.patch("0001"));
    assert!(
        patch.contains("+call();") && !patch.contains("llama-ours.cpp"),
        "{patch}"
    );
}

#[test]
fn a_commit_of_own_files_only_makes_no_patch() {
    let fixture = Fixture::with_series();
    let series = fixture.read("patches/series");
    fixture.edit_tree("src/llama-ours.cpp", "void call() { /* better */ }\n");
    fixture.edit_tree("ggml/src/ggml-ours.cpp", "int x;\n");
    fixture.commit("wip");
    fixture
        .xtask(&["patches", "export"])
        .succeeds()
        .finds(&["wrote patches/files/src/llama-ours.cpp"])
        .finds(&["wrote patches/files/ggml/src/ggml-ours.cpp"]);
    assert_eq!(fixture.read("patches/series"), series);
    fixture.xtask(&["patches", "check"]).succeeds();
}

#[test]
fn what_the_work_tree_no_longer_has_is_removed_from_patches() {
    let fixture = Fixture::with_series();
    fixture.git(&["reset", "--quiet", "--hard", "HEAD^"]);
    fixture.git(&["rm", "--quiet", "src/llama-ours.cpp"]);
    fixture.commit("drop ours");
    fixture
        .xtask(&["patches", "export"])
        .succeeds()
        .finds(&["removed patches/0002"]);
    assert_eq!(
        fixture.patches().len(),
        2,
        "series and one patch: {:?}",
        fixture.patches().keys()
    );
    assert!(!fixture.path("patches/files").exists());
}

#[test]
fn an_export_keeps_a_long_subject_in_the_file_name() {
    let fixture = Fixture::with_series();
    fixture.edit(MMAP, "call();", "call(now);");
    let summary = ["word"; 30].join(" ");
    fixture.commit(&format!("llama : {summary}"));
    fixture.xtask(&["patches", "export"]).succeeds();
    let name = format!("0003-llama-{}.patch", summary.replace(' ', "-"));
    assert!(
        fixture.patches().contains_key(&name),
        "{:?}",
        fixture.patches().keys()
    );
}

#[test]
fn a_fixup_is_folded_into_its_commit() {
    let fixture = Fixture::with_series();
    fixture.edit(MMAP, "call();", "call(now);");
    fixture.git(&["commit", "--quiet", "--all", "--fixup", "HEAD^"]);
    fixture
        .xtask(&["patches", "export"])
        .succeeds()
        .finds(&["wrote patches/0001"]);
    assert_eq!(fixture.read("patches/series").lines().count(), 2);
    assert!(fixture.read(&fixture.patch("0001")).contains("+call(now);"));
    fixture.xtask(&["patches", "check"]).succeeds();
}

#[test]
fn a_fixup_that_does_not_fold_leaves_commits_and_patches_alone() {
    let fixture = Fixture::with_series();
    let before = fixture.patches();
    fixture.edit(MMAP, "call();\n", "call();\nthird();\n");
    fixture.commit(&message("llama : a third"));
    fixture.edit(MMAP, "third();\n", "");
    fixture.edit(MMAP, "call();", "other();");
    fixture.git(&["commit", "--quiet", "--all", "--fixup", "HEAD~2"]);
    let head = fixture.git(&["rev-parse", "HEAD"]);
    fixture
        .xtask(&["patches", "export"])
        .exits(3)
        .says("cannot fold")
        .says("hint: ");
    assert_eq!(fixture.git(&["rev-parse", "HEAD"]), head);
    assert_eq!(fixture.patches(), before);
}

#[test]
fn an_import_does_not_drop_what_was_not_exported() {
    let fixture = Fixture::with_series();
    fixture.edit(MMAP, "line 20\n", "line twenty\n");
    fixture
        .xtask(&["patches", "import"])
        .exits(3)
        .says("not committed: src/llama-mmap.cpp")
        .says("hint: ");
    fixture.commit("wip");
    fixture
        .xtask(&["patches", "import"])
        .exits(3)
        .says("commits that were not exported");
    fixture.xtask(&["patches", "import", "--force"]).succeeds();
    assert!(
        !fixture
            .read("target/patches/llama.cpp/src/llama-mmap.cpp")
            .contains("twenty")
    );
}

#[test]
fn an_import_keeps_out_of_a_folder_that_is_not_its_own() {
    let fixture = Fixture::with_series();
    fixture.write("mine/notes.txt", "mine");
    let dir = fixture.path("mine");
    fixture
        .xtask(&["patches", "import", dir.to_str().unwrap()])
        .exits(3)
        .says("not made by an import");
    crate::support::git(&dir, &["init", "--quiet"]);
    fixture
        .xtask(&["patches", "import", "--force", dir.to_str().unwrap()])
        .exits(3)
        .says("is a git repository");
}

#[test]
fn an_export_does_not_overwrite_patches_that_came_after_the_import() {
    let fixture = Fixture::with_series();
    fixture.xtask(&["patches", "import"]).succeeds();
    fixture.write(
        "patches/files/src/llama-ours.cpp",
        "void call() { /* pulled */ }\n",
    );
    fixture
        .xtask(&["patches", "export"])
        .exits(3)
        .says("changed after the import")
        .says("hint: ");
    assert!(
        fixture
            .read("patches/files/src/llama-ours.cpp")
            .contains("pulled")
    );
}

#[test]
fn a_file_of_ours_that_upstream_has_too_is_refused() {
    let fixture = Fixture::with_series();
    fixture.write("patches/files/include/llama.h", "ours\n");
    fixture
        .xtask(&["patches", "import"])
        .exits(3)
        .says("a file of upstream");
}

#[test]
fn check_passes_on_what_an_export_wrote() {
    let fixture = Fixture::with_series();
    let run = fixture
        .xtask(&["patches", "check"])
        .succeeds()
        .says("2 patches and 1 files");
    assert_eq!(run.stdout, "");
}

#[test]
fn check_passes_on_no_series_at_all() {
    Fixture::empty().xtask(&["patches", "check"]).succeeds();
}

#[test]
fn check_finds_a_patch_that_was_edited_by_hand() {
    let fixture = Fixture::with_series();
    let name = fixture.patch("0001");
    fixture.replace(
        &name,
        "Subject: [PATCH] llama",
        "Subject: [PATCH 1/2] llama",
    );
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&[&name, "line 4 differs from an export"])
        .says("hint: ");
}

#[test]
fn check_finds_a_changed_line_that_the_blob_id_does_not_cover() {
    let fixture = Fixture::with_series();
    let name = fixture.patch("0001");
    fixture.replace(&name, "+call();", "+gall();");
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&["0001-", MMAP, "becomes", "expected"]);
}

#[test]
fn check_names_patch_file_and_both_ids_when_a_blob_id_is_wrong() {
    let fixture = Fixture::with_series();
    let name = fixture.patch("0001");
    let patch = fixture.read(&name);
    let line = patch
        .lines()
        .find(|line| line.starts_with("index "))
        .unwrap();
    let right = &line["index ".len()..][..40];
    let wrong = "1234567890".repeat(4);
    fixture.replace(&name, right, &wrong);
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&[
            name.trim_start_matches("patches/"),
            MMAP,
            &right[..7],
            &wrong[..7],
        ])
        .says("cargo xtask patches refresh");
}

#[test]
fn check_finds_a_missing_trailer() {
    let fixture = Fixture::with_series();
    fixture.git(&[
        "commit",
        "--quiet",
        "--amend",
        "-m",
        "llama : call ours again\n\nWhy.\n\nForwarded: no\n",
    ]);
    fixture.xtask(&["patches", "export"]).succeeds();
    let name = fixture.patch("0002");
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&[&name, "no trailer `Drop-When:`"]);
}

#[test]
fn check_finds_a_subject_without_an_area_and_a_body_without_a_reason() {
    let fixture = Fixture::with_series();
    fixture.git(&[
        "commit",
        "--quiet",
        "--amend",
        "-m",
        "call again\n\nForwarded: no\nDrop-When: never\n",
    ]);
    fixture.xtask(&["patches", "export"]).succeeds();
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&["0002", "not `area : summary`"])
        .finds(&["0002", "no reason"]);
}

#[test]
fn check_finds_a_long_hunk_that_is_not_explained() {
    let fixture = Fixture::with_series();
    fixture.edit(MMAP, "call_again();\n", &"call_again();\n".repeat(11));
    fixture.git(&["commit", "--quiet", "--all", "--amend", "--no-edit"]);
    fixture.xtask(&["patches", "export"]).succeeds();
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&["0002", "a hunk of 11 lines in src/llama-mmap.cpp"]);
    let text = message("llama : call ours again")
        .replace("so.\n", "so.\n\nHunk: src/llama-mmap.cpp: eleven calls.\n");
    fixture.git(&["commit", "--quiet", "--amend", "-m", &text]);
    fixture.xtask(&["patches", "export"]).succeeds();
    fixture.xtask(&["patches", "check"]).succeeds();
}

#[test]
fn check_finds_a_series_that_disagrees_with_the_folder() {
    let fixture = Fixture::with_series();
    let name = fixture
        .patch("0002")
        .trim_start_matches("patches/")
        .to_owned();
    fixture.replace("patches/series", &name, "0002-other.patch");
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .finds(&["0002-other.patch", "does not exist"])
        .finds(&[&name, "is not named in series"]);
}

#[test]
fn refresh_follows_lines_that_upstream_moved() {
    let fixture = Fixture::with_series();
    let newer = fixture.path("vendor/llama.cpp").join(MMAP);
    let text = fs::read_to_string(&newer).unwrap();
    fs::write(&newer, format!("new first line\n{text}")).unwrap();
    fixture
        .xtask(&["patches", "check"])
        .exits(1)
        .says("cargo xtask patches refresh");
    fixture
        .xtask(&["patches", "refresh"])
        .succeeds()
        .finds(&["wrote patches/0001"])
        .finds(&["wrote patches/0002"]);
    fixture.xtask(&["patches", "check"]).succeeds();
}

#[test]
fn refresh_merges_when_the_older_source_is_in_the_cache() {
    let fixture = Fixture::with_series();
    keep_older_source(&fixture);
    // Changes a context line of the patch: only a merge can still place the hunk.
    fixture.replace(
        "vendor/llama.cpp/src/llama-mmap.cpp",
        "line 13\n",
        "line thirteen\n",
    );
    fixture.xtask(&["patches", "refresh"]).succeeds();
    fixture.xtask(&["patches", "check"]).succeeds();
    assert!(
        fixture
            .read(&fixture.patch("0001"))
            .contains(" line thirteen")
    );
}

#[test]
fn refresh_leaves_a_conflict_to_the_developer() {
    let fixture = Fixture::with_series();
    keep_older_source(&fixture);
    let before = fixture.patches();
    fixture.replace(
        "vendor/llama.cpp/src/llama-mmap.cpp",
        "line 11\n",
        "line eleven\n",
    );
    fixture
        .xtask(&["patches", "refresh"])
        .exits(1)
        .finds(&["llama : call ours", MMAP])
        .says("patches after it: 1")
        .says("git am --continue");
    assert_eq!(fixture.patches(), before);
    fixture
        .xtask(&["patches", "import"])
        .exits(3)
        .says("an unfinished");
    fixture
        .xtask(&["patches", "export"])
        .exits(3)
        .says("an unfinished");

    let name = format!("target/patches/llama.cpp/{MMAP}");
    let upstreams = fs::read_to_string(fixture.path("vendor/llama.cpp").join(MMAP)).unwrap();
    fixture.write(&name, &upstreams.replace("line 10\n", "line 10\ncall();\n"));
    fixture.git(&["add", MMAP]);
    fixture.git(&["am", "--continue"]);
    fixture.xtask(&["patches", "export"]).succeeds();
    fixture.xtask(&["patches", "check"]).succeeds();
    assert_eq!(fixture.read("patches/series").lines().count(), 2);
}

#[test]
fn try_reports_each_hunk_and_changes_nothing() {
    let fixture = Fixture::with_series();
    fixture.write(
        "docs/patching.md",
        "## Upstream internals that the series relies on\n\n- **The tenth line** (`src/llama-mmap.cpp: line 10`): it is there.\n",
    );
    let before = fixture.patches();
    let newer = fixture.path("newer");
    upstream(&newer);
    let run = fixture
        .xtask(&["patches", "try", newer.to_str().unwrap()])
        .succeeds()
        .says("2 hunks: 2 apply at their place\n");
    assert_eq!(
        run.stdout,
        "0001 src/llama-mmap.cpp:8: applies [The tenth line]\n0002 src/llama-mmap.cpp:29: applies\n"
    );
    let mmap = "newer/src/llama-mmap.cpp";
    fixture.replace(mmap, "line 1\n", "line 0\nline 1\n");
    fixture.replace(mmap, "line 33\n", "line 33, changed\n");
    let run = fixture
        .xtask(&["patches", "try", newer.to_str().unwrap()])
        .succeeds()
        .says("2 hunks: 1 apply at an offset, 1 merge\n");
    assert_eq!(
        run.stdout,
        "0001 src/llama-mmap.cpp:8: applies at offset +1 [The tenth line]\n0002 src/llama-mmap.cpp:29: merges\n"
    );
    fixture.replace(mmap, "line 11\n", "line eleven\n");
    fixture
        .xtask(&["patches", "try", newer.to_str().unwrap()])
        .exits(1)
        .finds(&["0001 src/llama-mmap.cpp:8: conflicts [The tenth line]"])
        .finds(&["0002 src/llama-mmap.cpp:29: merges"]);
    assert_eq!(fixture.patches(), before);
}

#[test]
fn try_reads_the_archive_of_a_package() {
    let fixture = Fixture::with_series();
    upstream(&fixture.path("made/carrier-1/sys/llama.cpp"));
    fixture.replace(
        "made/carrier-1/sys/llama.cpp/src/llama-mmap.cpp",
        "line 30\n",
        "line thirty\n",
    );
    let archive = fixture.path("carrier-1.crate");
    let (archive, made) = (archive.to_str().unwrap(), fixture.path("made"));
    let status = Command::new("tar")
        .args(["-czf", archive, "-C", made.to_str().unwrap(), "carrier-1"])
        .status();
    assert!(status.unwrap().success());
    fixture
        .xtask(&["patches", "try", archive])
        .exits(1)
        .finds(&["0001 src/llama-mmap.cpp:8: applies"])
        .finds(&["0002 src/llama-mmap.cpp:29: conflicts"]);
}

#[test]
fn try_refuses_what_contains_no_llama_cpp() {
    let fixture = Fixture::with_series();
    let patches = fixture.path("patches");
    fixture
        .xtask(&["patches", "try", patches.to_str().unwrap()])
        .exits(3)
        .says("is not a llama.cpp tree");
}

/// Keeps the source of the series unpacked, like `vendor bump`.
fn keep_older_source(fixture: &Fixture) {
    upstream(&fixture.path("vendor/cache").join("c".repeat(64)));
}
