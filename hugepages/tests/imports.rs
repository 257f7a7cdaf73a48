//! The direction of imports: cli → parts → kernel → library, and no circle between files.
//!
//! The test reads the source of both crates. It follows `use` and paths that start with `crate`, `super`, `self` or the name of a crate, and
//! resolves re-exports to the file that defines a name. It ignores `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemMod, ItemUse, UseTree, Visibility};

/// Rooms of the tool, the lowest first. A room may import only from lower ones.
const ROOMS: &[&[&str]] = &[
    &["size", "stats", "process"],
    &["kernel", "picture", "demo_model"],
    &["plan", "pool", "tlb"],
    &["store"],
    &["status"],
    &["doctor", "compare"],
    &["cli"],
];

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
            name if self.files.contains_key(&join(from, name)) => join(from, name),
            _ => return None,
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
            let targets = paths.0.iter().filter_map(|path| self.resolve(module, path));
            // A module that only passes names of its children on imports none of them.
            let targets = targets.filter(|to| to != module && !to.starts_with(module));
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

#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Visit<'_> for Paths {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if !is_test(&item.attrs) {
            flatten(&item.tree, &mut Vec::new(), &mut self.0);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|it| it.ident.to_string());
        let names: Vec<String> = names.collect();
        if matches!(names[0].as_str(), "crate" | "super" | "hugepages") {
            self.0.push(names);
        }
        visit::visit_path(self, path);
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

fn library() -> Crate {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    Crate::read(&src, "lib.rs", &["llama_hugepages"])
}

fn tool() -> Crate {
    Crate::read(&src(), "lib.rs", &["hugepages"])
}

/// The program has the commands, and sees the parts as another crate.
fn commands() -> Crate {
    Crate::read(&src(), "main.rs", &[])
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for krate in [library(), tool(), commands()] {
        assert!(krate.files.len() > 10, "the source was not found");
        assert_eq!(circle(&krate.edges()), None);
    }
}

#[test]
fn every_import_points_down() {
    let rank = |room: &str| {
        let found = ROOMS.iter().position(|level| level.contains(&room));
        found.unwrap_or_else(|| panic!("`{room}` is in no level of ROOMS"))
    };
    let tool = tool();
    let mut wrong = Vec::new();
    for (from, targets) in tool.edges() {
        for to in targets {
            let (Some(a), Some(b)) = (from.first(), to.first()) else {
                continue;
            };
            if a != b && rank(a) <= rank(b) {
                wrong.push(format!("{} imports {}", from.join("::"), to.join("::")));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn the_library_knows_nothing_of_the_tool() {
    for (path, _) in library().files.into_values() {
        let text = fs::read_to_string(&path).expect("read before");
        assert!(!text.contains("hugepages::kernel"), "{}", path.display());
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
