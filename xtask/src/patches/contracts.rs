//! The facts about upstream that the series relies on: the list in docs/patching.md.
//!
//! An entry is `- **NAME** (PLACES): what must stay true`. A place is a file, or `FILE: WORD` for the hunks that contain a word.

use std::path::Path;

use crate::build::patch::Hunk;

const HEADING: &str = "## Upstream internals that the series relies on";

/// One entry of the list.
#[derive(Debug, PartialEq, Eq)]
pub struct Contract {
    pub name: String,
    places: Vec<Place>,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    file: String,
    word: Option<String>,
}

/// The entries of the list in the text of docs/patching.md.
pub fn parse(text: &str) -> Vec<Contract> {
    let Some((_, section)) = text.split_once(HEADING) else {
        return Vec::new();
    };
    let section = section.split("\n#").next().unwrap_or_default();
    section
        .split("\n- **")
        .skip(1)
        .filter_map(|entry| {
            let entry = entry.split_whitespace().collect::<Vec<_>>().join(" ");
            let (name, rest) = entry.split_once("**")?;
            let places = rest
                .strip_prefix(" (")
                .and_then(|rest| rest.split_once("):"));
            Some(Contract {
                name: name.replace('`', ""),
                places: places.map_or_else(Vec::new, |(places, _)| {
                    places.split(", ").map(Place::parse).collect()
                }),
            })
        })
        .collect()
}

impl Contract {
    /// Whether `hunk` depends on this contract. An `#include` depends on none.
    pub fn covers(&self, hunk: &Hunk) -> bool {
        !is_include(hunk) && self.places.iter().any(|place| place.contains(hunk))
    }
}

impl Place {
    fn parse(text: &str) -> Self {
        let text = text.trim_matches('`');
        let (file, word) = match text.split_once(": ") {
            Some((file, word)) => (file, Some(word.to_owned())),
            None => (text, None),
        };
        Self {
            file: file.to_owned(),
            word,
        }
    }

    fn contains(&self, hunk: &Hunk) -> bool {
        let has_word = |word: &String| hunk.text.contains(word.as_str());
        hunk.path == Path::new(&self.file) && self.word.as_ref().is_none_or(has_word)
    }
}

fn is_include(hunk: &Hunk) -> bool {
    let mut changed = hunk.text.lines().filter(|it| it.starts_with(['+', '-']));
    changed.all(|line| line[1..].starts_with("#include"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::patch::Series;
    use crate::build::patch::place::Placed;

    const LIST: &str = "# Title\n\n## Upstream internals that the series relies on\n\nCheck.\n\n\
        - **`f`** (`a.c: f(`,\n  `b.c`): it returns.\n- **The log**: it has (a: b): c.\n\n## Next\n\n- **No entry** (`a.c`): x\n";

    fn hunk(path: &str, text: &str) -> Hunk {
        Hunk {
            patch: "0001-a.patch".into(),
            path: path.into(),
            line: 1,
            text: text.into(),
            placed: Placed::Merges,
        }
    }

    #[test]
    fn a_place_is_a_file_or_a_word_in_a_file() {
        let contracts = parse(LIST);
        let names: Vec<_> = contracts.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["f", "The log"]);
        assert!(contracts[0].covers(&hunk("a.c", "int f() {\n+x")));
        assert!(!contracts[0].covers(&hunk("a.c", "int g() {\n+x")));
        assert!(contracts[0].covers(&hunk("b.c", "int g() {\n+x")));
        assert!(!contracts[0].covers(&hunk("b.c", "\n a\n+#include \"b.h\"")));
        assert!(!contracts[1].covers(&hunk("a", "b\n+x")));
    }

    #[test]
    fn each_hunk_of_our_series_depends_on_a_contract_and_each_place_has_a_hunk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let contracts = parse(&std::fs::read_to_string(root.join("docs/patching.md")).unwrap());
        let series = Series::read(&root.join("patches")).unwrap();
        // Without a source all files are missing, and only the texts of the hunks count.
        let nowhere = tempfile::tempdir().unwrap();
        let hunks = series.attempt(nowhere.path(), Vec::new()).unwrap();
        assert!(hunks.len() > 50, "{}", hunks.len());
        for hunk in &hunks {
            assert!(
                is_include(hunk) || contracts.iter().any(|it| it.covers(hunk)),
                "no contract for {}:{} of {}",
                hunk.path.display(),
                hunk.line,
                hunk.patch
            );
        }
        for place in contracts.iter().flat_map(|it| &it.places) {
            assert!(hunks.iter().any(|it| place.contains(it)), "{place:?}");
        }
    }
}
