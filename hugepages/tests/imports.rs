//! The direction of imports: cli → parts → kernel → library, and no circle between files or between folders, also in the engine.
//!
//! The test reads the source of the library, of the tool's parts, and of its commands. It follows `use`, every path in the code, and paths
//! in macros and attributes, and resolves re-exports to the file that defines a name. These are no imports: `mod x;`, a re-export of a
//! module's own children, the path of a visibility such as `pub(in crate::x)`, and everything under `#[cfg(test)]`.
//!
//! It also finds the paths of `/proc` and `/sys` in the code: only `kernel` reads these files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemMod, ItemUse, LitStr, UseTree, VisRestricted, Visibility};

/// Rooms from the lowest to the highest. A room may import only from lower ones.
type Levels = &'static [&'static [&'static str]];

/// Rooms of `hugepages/src/`.
const PARTS: Levels = &[
    &[
        "size",
        "stats",
        "child_process",
        "port",
        "server_arguments",
        "ending_signals",
    ],
    &["kernel", "picture", "demo_model"],
    &["pool", "tlb"],
    &["plan"],
    &["store", "serve"],
    &["status"],
    &["doctor", "compare"],
];

/// Rooms of `hugepages/src/cli/`, which all stand above the parts.
const COMMANDS: Levels = &[
    &["events", "exit", "output", "programs", "signals"],
    &["errors", "pool"],
    &["store"],
    &[
        "compare",
        "demo_model",
        "doctor",
        "exec",
        "man",
        "overview",
        "plan",
        "serve",
        "status",
        "tlb",
    ],
    &["command_line"],
];

/// Rooms of `hugepages/src/compare/`.
const COMPARE: Levels = &[&["measure"], &["run"], &["report"]];

type Module = Vec<String>;

/// The modules of one crate, or of a program with its own root.
struct Crate {
    files: BTreeMap<Module, (PathBuf, File)>,
    /// Names of other crates that mean modules of this one.
    names: &'static [&'static str],
}

impl Crate {
    fn read(src: &Path, root: &str, names: &'static [&'static str]) -> Self {
        let mut krate = Self {
            files: BTreeMap::new(),
            names,
        };
        krate.add(src, &src.join(root), &Vec::new());
        krate
    }

    fn add(&mut self, dir: &Path, path: &Path, module: &Module) {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let children: Vec<String> = file.items.iter().filter_map(child).collect();
        self.files.insert(module.clone(), (path.to_owned(), file));
        for name in children {
            let inner = dir.join(&name);
            let candidates = [dir.join(format!("{name}.rs")), inner.join("mod.rs")];
            let found = candidates.iter().find(|path| path.is_file());
            let found = found.unwrap_or_else(|| panic!("{name} of {}", path.display()));
            self.add(&inner, found, &join(module, &name));
        }
    }

    /// The module that defines the end of a path.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => from.clone(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            name if self.names.contains(&name) => Vec::new(),
            name if path.len() > 1 && self.files.contains_key(&join(from, name)) => {
                join(from, name)
            }
            // A name that the module passes on and also uses itself.
            name => return self.reexported(from, &self.files.get(from)?.1, name),
        };
        for name in &path[1..] {
            if name == "super" {
                at.pop()?;
                continue;
            }
            if self.files.contains_key(&join(&at, name)) {
                at.push(name.clone());
                continue;
            }
            let (_, file) = self.files.get(&at)?;
            return Some(self.reexported(&at, file, name).unwrap_or(at));
        }
        Some(at)
    }

    fn reexported(&self, at: &Module, file: &File, name: &str) -> Option<Module> {
        let public = file.items.iter().filter_map(|item| match item {
            Item::Use(item) if !matches!(item.vis, Visibility::Inherited) => Some(item),
            _ => None,
        });
        let mut paths = Vec::new();
        public.for_each(|item| flatten(&item.tree, &mut Vec::new(), &mut paths));
        let path = paths
            .iter()
            .find(|path| path.last().is_some_and(|it| it == name))?;
        self.resolve(at, path)
    }

    /// Which file imports which.
    fn edges(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut edges = BTreeMap::new();
        for (module, (_, file)) in &self.files {
            let mut paths = Paths::default();
            paths.visit_file(file);
            let resolve = |path: &Vec<String>| self.resolve(module, path);
            let used = paths.used.iter().filter_map(resolve);
            let passed_on = paths.passed_on.iter().filter_map(resolve);
            let passed_on = passed_on.filter(|to| !to.starts_with(module));
            let targets = used.chain(passed_on).filter(|to| to != module);
            edges.insert(module.clone(), targets.collect());
        }
        edges
    }
}

/// A module in a file of its own.
fn child(item: &Item) -> Option<String> {
    match item {
        Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => {
            Some(item.ident.to_string())
        }
        _ => None,
    }
}

fn join(module: &Module, name: &str) -> Module {
    [module.as_slice(), &[name.to_owned()]].concat()
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|word| word.is_ident("test"))
    })
}

fn flatten(tree: &UseTree, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => paths.push(prefix.clone()),
        UseTree::Name(name) => paths.push([prefix.as_slice(), &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => {
            paths.push([prefix.as_slice(), &[name.ident.to_string()]].concat());
        }
        UseTree::Glob(_) => paths.push(prefix.clone()),
        UseTree::Group(group) => group.items.iter().for_each(|it| flatten(it, prefix, paths)),
    }
}

/// The paths in a file.
#[derive(Default)]
struct Paths {
    used: Vec<Vec<String>>,
    passed_on: Vec<Vec<String>>,
}

impl Paths {
    /// Finds paths in text, such as the body of a macro.
    fn scan(&mut self, text: &str) {
        let text = text.replace(" :: ", "::");
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in text.split(|c| !is_path(c)) {
            let names: Vec<String> = word.split("::").map(str::to_owned).collect();
            if names.len() > 1 && names.iter().all(|name| !name.is_empty()) {
                self.used.push(names);
            }
        }
    }
}

impl Visit<'_> for Paths {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if !is_test(&item.attrs) {
            let paths = match item.vis {
                Visibility::Inherited => &mut self.used,
                _ => &mut self.passed_on,
            };
            flatten(&item.tree, &mut Vec::new(), paths);
        }
    }

    fn visit_vis_restricted(&mut self, _: &VisRestricted) {}

    fn visit_attribute(&mut self, attribute: &Attribute) {
        if let Ok(list) = attribute.meta.require_list() {
            self.scan(&list.tokens.to_string());
        }
    }

    fn visit_macro(&mut self, item: &syn::Macro) {
        self.scan(&item.tokens.to_string());
        visit::visit_macro(self, item);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|it| it.ident.to_string());
        self.used.push(names.collect());
        visit::visit_path(self, path);
    }
}

/// Paths of the kernel's files in the code of a file.
#[derive(Default)]
struct KernelFiles(Vec<String>);

impl KernelFiles {
    /// A text with a blank is a sentence for the user.
    fn note(&mut self, text: &str) {
        let is_path = text.starts_with("/proc/") || text.starts_with("/sys/");
        if is_path && !text.contains(' ') {
            self.0.push(text.to_owned());
        }
    }
}

impl Visit<'_> for KernelFiles {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_attribute(&mut self, _: &Attribute) {}

    fn visit_lit_str(&mut self, text: &LitStr) {
        self.note(&text.value());
    }

    fn visit_macro(&mut self, item: &syn::Macro) {
        let tokens = item.tokens.to_string();
        tokens
            .split('"')
            .skip(1)
            .step_by(2)
            .for_each(|text| self.note(text));
    }
}

/// A circle, if the files have one.
fn circle(edges: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<String>> {
    fn search(
        at: &Module,
        edges: &BTreeMap<Module, BTreeSet<Module>>,
        way: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|module| module == at) {
            let names = way[start..].iter().chain([at]);
            return Some(names.map(|module| module.join("::")).collect());
        }
        if done.contains(at) {
            return None;
        }
        way.push(at.clone());
        let found = edges[at]
            .iter()
            .find_map(|next| search(next, edges, way, done));
        way.pop();
        done.insert(at.clone());
        found
    }
    let mut done = BTreeSet::new();
    edges
        .keys()
        .find_map(|module| search(module, edges, &mut Vec::new(), &mut done))
}

/// Imports between neighbours: for each import, the two folders or files where the ways to both ends part.
fn between_folders(
    edges: &BTreeMap<Module, BTreeSet<Module>>,
) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut folders: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (from, targets) in edges {
        for to in targets {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if common < from.len() && common < to.len() {
                let (from, to) = (from[..=common].to_vec(), to[..=common].to_vec());
                folders.entry(to.clone()).or_default();
                folders.entry(from).or_default().insert(to);
            }
        }
    }
    folders
}

/// Imports of a folder that do not point to a lower level.
fn not_down(krate: &Crate, folder: &[&str], levels: Levels) -> Vec<String> {
    let rank = |room: &String| {
        let found = levels.iter().position(|level| level.contains(&&**room));
        found.unwrap_or_else(|| panic!("`{room}` is in no level of {folder:?}"))
    };
    let inside = |module: &Module| {
        let is_inside = module.iter().zip(folder).all(|(a, b)| a == b);
        is_inside.then(|| module.get(folder.len()).cloned())?
    };
    let mut wrong = Vec::new();
    for (from, targets) in krate.edges() {
        for to in targets {
            let (Some(a), Some(b)) = (inside(&from), inside(&to)) else {
                continue;
            };
            if a != b && rank(&a) <= rank(&b) {
                wrong.push(format!("{} imports {}", from.join("::"), to.join("::")));
            }
        }
    }
    wrong
}

fn library() -> Crate {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    Crate::read(&src, "lib.rs", &["llama_hugepages"])
}

fn tool() -> Crate {
    Crate::read(&src(), "lib.rs", &["hugepages"])
}

fn server() -> Crate {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/bin/llama-server");
    Crate::read(&src, "main.rs", &[])
}

/// The program has the commands, and sees the parts as another crate.
fn commands() -> Crate {
    Crate::read(&src(), "main.rs", &[])
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn no_files_and_no_folders_import_each_other_in_a_circle() {
    for (krate, least) in [
        (library(), 15),
        (server(), 2),
        (tool(), 100),
        (commands(), 50),
    ] {
        assert!(krate.files.len() >= least, "the source was not found");
        let edges = krate.edges();
        assert_eq!(circle(&edges), None);
        assert_eq!(circle(&between_folders(&edges)), None);
    }
}

/// Which file of the engine includes which; a header and its source are one file.
fn includes_of_the_engine() -> BTreeMap<Module, BTreeSet<Module>> {
    let folder = "../patches/files/ggml/src/ggml-hugepages";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let stem = |path: &Path| vec![path.file_stem().unwrap().to_str().unwrap().to_owned()];
    let mut edges: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
        let ours = names.filter(|name| folder.join(name).is_file());
        let targets = ours.map(|name| stem(Path::new(name)));
        let from = stem(&path);
        let targets: Vec<_> = targets.filter(|to| *to != from).collect();
        edges.entry(from).or_default().extend(targets);
    }
    edges
}

#[test]
fn no_files_of_the_engine_include_each_other_in_a_circle() {
    let edges = includes_of_the_engine();
    assert!(edges.len() > 20, "the source was not found");
    assert!(edges.values().flatten().count() > edges.len());
    assert_eq!(circle(&edges), None);
}

#[test]
fn every_import_points_down() {
    assert_eq!(not_down(&tool(), &[], PARTS), [""; 0]);
    assert_eq!(not_down(&tool(), &["compare"], COMPARE), [""; 0]);
    assert_eq!(not_down(&commands(), &["cli"], COMMANDS), [""; 0]);
}

#[test]
fn the_library_and_the_parts_know_nothing_above_them() {
    let names = |krate: &Crate, above: &str| {
        let mut found = Vec::new();
        for (module, (_, file)) in &krate.files {
            let mut paths = Paths::default();
            paths.visit_file(file);
            let paths = paths.used.iter().chain(&paths.passed_on);
            if paths.clone().any(|path| path.len() > 1 && path[0] == above) {
                found.push(module.join("::"));
            }
        }
        found
    };
    assert_eq!(names(&library(), "hugepages"), [""; 0]);
    assert_eq!(names(&tool(), "clap"), [""; 0]);
    assert!(names(&commands(), "hugepages").len() > 10);
}

#[test]
fn only_the_kernel_part_reads_files_of_the_kernel() {
    let mut found = Vec::new();
    for krate in [tool(), commands()] {
        for (module, (_, file)) in &krate.files {
            let mut paths = KernelFiles::default();
            paths.visit_file(file);
            if module.first().is_none_or(|room| room != "kernel") {
                let name = module.join("::");
                found.extend(paths.0.iter().map(|path| format!("{name} {path}")));
            }
        }
    }
    // The pool writes these, and never reads them.
    let written = ["drop_caches", "compact_memory"];
    let written = written.map(|file| format!("pool::reserve /proc/sys/vm/{file}"));
    assert_eq!(found, written);
}

#[test]
fn a_path_of_the_kernel_is_found_wherever_it_is_written() {
    let found = |text: &str| {
        let mut paths = KernelFiles::default();
        paths.visit_file(&syn::parse_str(text).unwrap());
        paths.0
    };
    for text in [
        r#"const A: &str = "/proc/meminfo";"#,
        r#"fn f() { read(&format!("/proc/meminfo")) }"#,
    ] {
        assert_eq!(found(text), ["/proc/meminfo"], "{text}");
    }
    for text in [
        "/// Source: `/proc/meminfo`\nfn f() {}",
        r#"const A: &str = "/proc/meminfo: MemTotal";"#,
        r#"#[cfg(test)] mod tests { const A: &str = "/proc/meminfo"; }"#,
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let edges = [("a", "b"), ("b", "c"), ("c", "a")];
    let mut edges: BTreeMap<Module, BTreeSet<Module>> = edges
        .map(|(from, to)| (module(from), [module(to)].into()))
        .into();
    assert_eq!(circle(&edges).unwrap(), ["a", "b", "c", "a"]);
    edges.insert(module("c"), BTreeSet::new());
    assert_eq!(circle(&edges), None);
}

#[test]
fn two_folders_make_a_circle_even_if_their_files_make_none() {
    let module = |name: &str| name.split('/').map(str::to_owned).collect::<Module>();
    let edges = [("a/x", "b/x"), ("b/y", "a/y"), ("a/y", "a/z")];
    let edges = edges
        .map(|(from, to)| (module(from), [module(to)].into()))
        .into();
    assert_eq!(circle(&between_folders(&edges)).unwrap(), ["a", "b", "a"]);
}

#[test]
fn an_import_is_found_wherever_it_is_written() {
    let found = |text: &str| {
        let mut paths = Paths::default();
        paths.visit_file(&syn::parse_str(text).unwrap());
        let used = paths.used.iter().map(|path| path.join("::"));
        used.filter(|path| path.contains("low")).collect::<Vec<_>>()
    };
    for text in [
        "use super::low;",
        "fn f() { super::low::g() }",
        "fn f() { println!(\"{}\", super::low::g()) }",
        "struct A { #[serde(serialize_with = \"super::low::g\")] a: u32 }",
        "impl super::low::A {}",
    ] {
        assert!(!found(text).is_empty(), "{text}");
    }
    for text in [
        "mod low;",
        "pub use low::A;",
        "pub(in crate::low) fn f() {}",
        "#[cfg(test)] mod tests { use super::low; }",
        "/// See [`super::low::A`].\nfn f() {}",
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}
