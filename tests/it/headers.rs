//! The public structs and enums of our headers begin with those of stock: a program that was built with stock's headers finds every field
//! and every value where it expects them. New ones are at the end.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::cxx::Compiler;
use crate::support::{or_skip, programs, target_dir};

/// The public headers that our patches may change.
const HEADERS: [&str; 7] = [
    "include/llama.h",
    "ggml/include/ggml.h",
    "ggml/include/ggml-alloc.h",
    "ggml/include/ggml-backend.h",
    "ggml/include/ggml-cpu.h",
    "ggml/include/ggml-opt.h",
    "ggml/include/gguf.h",
];

/// A struct or an enum, with the names of its fields or values in their order.
#[derive(Debug, PartialEq, Eq)]
struct Type {
    is_enum: bool,
    name: String,
    members: Vec<String>,
}

/// The structs and enums of a header that have a name.
fn types(header: &str) -> Vec<Type> {
    let text = without_comments(header);
    let mut found = Vec::new();
    for keyword in ["struct", "enum"] {
        for (at, _) in text.match_indices(&format!("{keyword} ")) {
            let before = text[..at].chars().next_back();
            let rest = &text[at + keyword.len() + 1..];
            let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
            let body = rest[name.len()..].trim_start().strip_prefix('{');
            let (Some(body), false) = (body, before.is_some_and(is_name) || name.is_empty()) else {
                continue;
            };
            let body = &body[..end_of_block(body)];
            let is_enum = keyword == "enum";
            let members = if is_enum {
                split(body, ',')
                    .iter()
                    .filter_map(|it| first_name(it))
                    .collect()
            } else {
                fields(body)
            };
            found.push(Type {
                is_enum,
                name,
                members,
            });
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A header without comments and lines of the preprocessor.
fn without_comments(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some(at) = rest.find("/*") {
        text += &rest[..at];
        rest = rest[at..].split_once("*/").map_or("", |(_, rest)| rest);
    }
    text += rest;
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.filter(|line| !line.trim_start().starts_with('#'));
    code.collect::<Vec<_>>().join("\n")
}

/// The position of the brace that closes a block, whose opening brace is before the text.
fn end_of_block(text: &str) -> usize {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The parts between separators that are outside of brackets.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            _ => {}
        }
        if c == separator && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn fields(body: &str) -> Vec<String> {
    let mut names = Vec::new();
    for declaration in split(body, ';') {
        if let Some((_, inner)) = declaration.split_once('{') {
            let end = end_of_block(inner);
            // The members of a union without a name are members of its struct.
            match first_name(&inner[end..]) {
                Some(name) => names.push(name),
                None => names.extend(fields(&inner[..end])),
            }
            continue;
        }
        for declarator in split(&declaration, ',') {
            let name = match declarator.split_once("(*") {
                Some((_, function)) => first_name(function),
                None => last_name(declarator.split('[').next().unwrap_or_default()),
            };
            names.extend(name);
        }
    }
    names
}

fn first_name(text: &str) -> Option<String> {
    let start = text.find(is_name)?;
    Some(text[start..].chars().take_while(|c| is_name(*c)).collect())
}

fn last_name(text: &str) -> Option<String> {
    let text = text.trim_end();
    let start = text.rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
    (start < text.len()).then(|| text[start..].to_owned())
}

fn read(tree: &Path) -> Vec<Type> {
    let read = |header: &&str| fs::read_to_string(tree.join(header)).expect("the tree is complete");
    HEADERS
        .iter()
        .map(read)
        .flat_map(|text| types(&text))
        .collect()
}

/// A program that prints the size of each struct, the place and the size of each field, and each value.
fn printer(types: &[Type]) -> String {
    let mut code = "#include <cstddef>\n#include <cstdio>\n".to_owned();
    for header in HEADERS {
        let name = header.rsplit('/').next().unwrap_or_default();
        writeln!(code, "#include \"{name}\"").expect("a string grows");
    }
    code += "int main() {\n";
    for Type {
        is_enum,
        name,
        members,
    } in types
    {
        for member in members {
            let line = if *is_enum {
                format!(r#"printf("{name} {member} %lld\n", (long long) {member});"#)
            } else {
                format!(
                    r#"printf("{name}.{member} %zu %zu\n", offsetof(struct {name}, {member}), sizeof(((struct {name} *) nullptr)->{member}));"#
                )
            };
            code += &line;
            code.push('\n');
        }
    }
    code + "}\n"
}

fn output_with(tree: &Path, source: &Path, program: &Path) -> String {
    let mut command = Compiler::given().command();
    command
        .args(["-std=c++17", "-w", "-I"])
        .arg(tree.join("include"))
        .arg("-I")
        .arg(tree.join("ggml/include"))
        .arg(source)
        .arg("-o")
        .arg(program);
    programs::run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(program).output().expect("just built");
    String::from_utf8(output.stdout).expect("ASCII")
}

#[test]
fn fields_and_values_of_stock_are_where_stock_has_them() {
    or_skip!(programs::stock("llama-server"));
    let stock = target_dir().join("stock/llama.cpp");
    let ours = Path::new(env!("OUT_DIR")).join("llama.cpp");
    let types = read(&stock);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let source = dir.path().join("printer.cpp");
    fs::write(&source, printer(&types)).expect("the folder is new");
    let expected = output_with(&stock, &source, &dir.path().join("stock"));
    for field in [
        "llama_model_params.vocab_only ",
        "llama_context_params.n_ctx 0 4",
        "ggml_tensor.data ",
    ] {
        assert!(expected.contains(field), "no `{field}`\n{expected}");
    }
    assert_eq!(
        output_with(&ours, &source, &dir.path().join("ours")),
        expected
    );
}

#[test]
fn new_fields_and_values_are_at_the_end() {
    or_skip!(programs::stock("llama-server"));
    let stock = read(&target_dir().join("stock/llama.cpp"));
    let ours = read(&Path::new(env!("OUT_DIR")).join("llama.cpp"));
    assert!(stock.len() > 20, "{stock:?}");
    let mut grown = Vec::new();
    for theirs in &stock {
        let mine = ours
            .iter()
            .find(|mine| (mine.is_enum, &mine.name) == (theirs.is_enum, &theirs.name));
        let mine = mine.unwrap_or_else(|| panic!("`{}` is missing", theirs.name));
        assert!(
            mine.members.starts_with(&theirs.members),
            "{mine:?}\n{theirs:?}"
        );
        if mine.members.len() > theirs.members.len() {
            grown.push(mine.name.as_str());
        }
    }
    assert!(grown.contains(&"llama_model_params"), "{grown:?}");
}

#[test]
fn the_members_of_a_header_are_found() {
    let header = "
#define struct_like {
/* struct ignored { int a; }; */
struct first {
    int a, b; // a comment with a ;
    const struct other * list[4];
    void (*call)(int x, void * data);
    union { float f; int32_t i; };
    union { char c; } named;
};
enum kind { KIND_A, KIND_B = 1 << 3, // comment
    KIND_C, };
struct forward;
";
    let names = |list: &[&str]| list.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
    let found = types(header);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].name, "first");
    assert_eq!(
        found[0].members,
        names(&["a", "b", "list", "call", "f", "i", "named"])
    );
    assert_eq!(found[1].members, names(&["KIND_A", "KIND_B", "KIND_C"]));
}
