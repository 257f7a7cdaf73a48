//! `hugepages plan`: the huge pages that a model needs.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use hugepages::kernel::hvo::{self, HvoState};
use hugepages::kernel::pools::{self, PoolState};
use hugepages::kernel::{HugePageSize, Root, sizes};
use hugepages::plan::{Need, Plan};
use hugepages::pool::persist::Persistent;
use hugepages::size::ByteSize;

use crate::cli::output::{self, Format, Screen};
use crate::cli::{Exit, programs};

const SCHEMA: u32 = 1;

/// Compute how many huge pages a model needs, and how many are missing
///
/// Takes the arguments of llama-server. Reads only the headers of the model, takes no page and needs no root. The numbers are
/// those of a load with the same arguments, because llama-server computes both with the same code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0  enough pages are usable\n  1  llama-server refuses the model or the arguments\n  3  pages are missing; the output has the number"
)]
pub struct Args {
    /// llama-server that computes the plan [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// Arguments of llama-server, for example -m model.gguf --ctx-size 8192
    #[arg(last = true, required = true)]
    server_arguments: Vec<String>,
}

/// The need of one pool, and its counters.
#[derive(Serialize)]
struct Demand {
    page_size: u64,
    needed: u64,
    total: u64,
    free: u64,
    reserved: u64,
    surplus: u64,
    overcommit: u64,
    usable: u64,
    missing: u64,
    /// One for each node; empty on a machine with one node.
    nodes: Vec<NodeDemand>,
    /// Bytes of `struct page` memory that HVO frees for these pages.
    hvo_bytes: u64,
}

/// The counters of one node, and its need if the server takes pages from all nodes in turn.
#[derive(Serialize)]
struct NodeDemand {
    node: u32,
    needed: Option<u64>,
    total: u64,
    free: u64,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    pools: Vec<Demand>,
    /// Commands that add the missing pages. They set new totals, which include the pages of others.
    commands: Vec<String>,
    /// Settings for every boot: a file and its line.
    persistent: Vec<(String, String)>,
    /// Whether HVO is on; `None` if the kernel has no HVO.
    hvo: Option<bool>,
    /// Bytes of page tables of each process, with these pages and with pages of 4 KiB.
    page_table_bytes: u64,
    page_table_bytes_4k: u64,
}

pub fn run(args: &Args) -> Result<Exit> {
    let server = args
        .server
        .clone()
        .map_or_else(|| programs::beside("llama-server"), Ok)?;
    let plan = Plan::ask(&server, &args.server_arguments)?;
    let answer = answer(
        &Root::system(),
        &plan,
        is_interleaved(&args.server_arguments),
    );
    match args.output.format {
        Format::Json => output::json(SCHEMA, &answer)?,
        Format::Human => writeln!(io::stdout(), "{}", text(Screen::stdout(), &answer))?,
    }
    Ok(if plan.fits {
        Exit::Success
    } else {
        Exit::Short
    })
}

/// Whether the arguments or the environment contain `--numa distribute`.
fn is_interleaved(arguments: &[String]) -> bool {
    let value = arguments
        .iter()
        .skip_while(|argument| *argument != "--numa")
        .nth(1)
        .cloned();
    value
        .or_else(|| env::var("LLAMA_ARG_NUMA").ok())
        .is_some_and(|numa| numa == "distribute")
}

fn nodes_of(pool: &PoolState, needed: u64, interleaved: bool) -> Vec<NodeDemand> {
    let n = pool.nodes.len() as u64;
    let nodes = pool.nodes.iter().filter(|_| n > 1);
    nodes
        .map(|node| NodeDemand {
            node: node.node,
            needed: interleaved.then(|| needed.div_ceil(n)),
            total: node.total,
            free: node.free,
        })
        .collect()
}

fn answer<'a>(root: &Root, plan: &'a Plan, interleaved: bool) -> Answer<'a> {
    let default_size = sizes::default_of(root);
    let states = pools::read(root);
    let mut pools = Vec::new();
    let mut commands = Vec::new();
    let mut persistent = Vec::new();
    for (size, needed) in plan.pages() {
        let Some(pool) = states.iter().find(|pool| pool.page_size == size) else {
            continue;
        };
        let missing = needed.saturating_sub(pool.usable);
        if missing > 0 {
            let total = pool.total + missing;
            commands.push(if default_size == Some(size) {
                format!("sysctl vm.nr_hugepages={total}")
            } else {
                format!(
                    "echo {total} > /sys/kernel/mm/hugepages/{}/nr_hugepages",
                    size.sysfs_name()
                )
            });
            // The same lines that `hugepages pool persist` writes.
            let files = Persistent::new(root, size, None, total)
                .settings
                .into_iter();
            persistent.extend(files.map(|file| {
                let setting = file.text.lines().last().unwrap_or_default().to_owned();
                (file.path.display().to_string(), setting)
            }));
        }
        pools.push(Demand {
            page_size: size.bytes(),
            needed,
            total: pool.total,
            free: pool.free,
            reserved: pool.reserved,
            surplus: pool.surplus,
            overcommit: pool.overcommit,
            usable: pool.usable,
            missing,
            nodes: nodes_of(pool, needed, interleaved),
            hvo_bytes: needed * hvo::saved_bytes(size),
        });
    }
    let sum = |f: fn(&Need) -> u64| plan.needs.iter().map(f).sum::<u64>();
    Answer {
        plan,
        pools,
        commands,
        persistent,
        hvo: match hvo::state(root) {
            HvoState::On => Some(true),
            HvoState::Off => Some(false),
            HvoState::Unsupported => None,
        },
        page_table_bytes: 8 * sum(|need| need.pages),
        page_table_bytes_4k: 8 * sum(|need| need.bytes.div_ceil(4096)),
    }
}

/// The value of `--hugepage-size`, such as `2M`.
fn size_name(bytes: u64) -> String {
    HugePageSize::new(bytes).map_or_else(|| "base".to_owned(), HugePageSize::short_name)
}

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 20))
}

/// Tables of the needs, the pools and the nodes.
fn tables(screen: Screen, answer: &Answer) -> Vec<String> {
    let plan = answer.plan;
    let files = plan
        .needs
        .iter()
        .filter_map(|need| need.file)
        .max()
        .map_or(0, |last| last + 1);
    let place = |need: &Need| match need.file {
        Some(_) if files == 1 => "file".to_owned(),
        Some(file) => format!("shard {} of {files}", file + 1),
        None => "buffer".to_owned(),
    };
    let on = |size| {
        if plan.size == "thp" && size != 0 {
            "thp".to_owned()
        } else {
            size_name(size)
        }
    };
    let rows = plan.needs.iter().map(|need| {
        vec![
            need.kind.clone(),
            place(need),
            on(need.page_size),
            need.pages.to_string(),
            mib(need.bytes),
        ]
    });
    let mut parts = vec![output::table(
        screen,
        &["kind", "source", "backing", "pages", "MiB"],
        rows,
    )];

    let pools = answer.pools.iter().map(|pool| {
        let numbers = [
            pool.needed,
            pool.usable,
            pool.missing,
            pool.total,
            pool.free,
            pool.reserved,
            pool.surplus,
        ];
        let mut row = vec![size_name(pool.page_size)];
        row.extend(numbers.map(|number| number.to_string()));
        row
    });
    if !answer.pools.is_empty() {
        let head = [
            "pool", "needed", "usable", "missing", "total", "free", "reserved", "surplus",
        ];
        parts.push(output::table(screen, &head, pools));
    }

    let nodes = answer.pools.iter().flat_map(|pool| {
        pool.nodes.iter().map(|node| {
            let needed = node
                .needed
                .map_or_else(|| "-".to_owned(), |pages| pages.to_string());
            vec![
                size_name(pool.page_size),
                node.node.to_string(),
                needed,
                node.total.to_string(),
                node.free.to_string(),
            ]
        })
    });
    let nodes: Vec<_> = nodes.collect();
    if !nodes.is_empty() {
        parts.push(output::table(
            screen,
            &["pool", "node", "needed", "total", "free"],
            nodes,
        ));
    }

    parts
}

fn text(screen: Screen, answer: &Answer) -> String {
    let plan = answer.plan;
    let mut parts = tables(screen, answer);
    let mut lines = Vec::new();
    if plan.fits {
        lines.push("the model fits".to_owned());
    } else {
        lines.push(format!("the model does not fit: {}", plan.message));
        lines.push(format!("hint: {}", plan.hint));
    }
    for command in &answer.commands {
        lines.push(format!("now:          {command}"));
    }
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (file, line) in &answer.persistent {
        files.entry(file).or_default().push(line);
    }
    for (file, settings) in files {
        for setting in settings {
            lines.push(format!("at each boot: {setting}   in {file}"));
        }
    }
    parts.push(lines.join("\n"));

    let hvo: u64 = answer.pools.iter().map(|pool| pool.hvo_bytes).sum();
    let hvo = match answer.hvo {
        Some(true) => format!(
            "HVO is on: it frees {} of `struct page` memory for these pages",
            ByteSize::new(hvo)
        ),
        Some(false) => format!(
            "HVO is off: with vm.hugetlb_optimize_vmemmap=1, set before the pages are added, it frees {} of `struct page` memory",
            ByteSize::new(hvo)
        ),
        None => "this kernel has no HVO".to_owned(),
    };
    parts.push(format!(
        "{hvo}\npage tables of each process: {} instead of {} with pages of 4 KiB",
        ByteSize::new(answer.page_table_bytes),
        ByteSize::new(answer.page_table_bytes_4k)
    ));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A kernel with two nodes. One node has nearly all pages.
    fn two_nodes(dir: &std::path::Path) -> Root {
        let write = |folder: &str, values: &[(&str, u64)]| {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).unwrap();
            for (name, value) in values {
                fs::write(folder.join(name), format!("{value}\n")).unwrap();
            }
        };
        write(
            "sys/kernel/mm/hugepages/hugepages-2048kB",
            &[
                ("nr_hugepages", 100),
                ("free_hugepages", 90),
                ("resv_hugepages", 0),
                ("surplus_hugepages", 0),
                ("nr_overcommit_hugepages", 0),
            ],
        );
        for (node, total, free) in [(0, 80, 75), (1, 20, 15)] {
            let folder = format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
            write(
                &folder,
                &[
                    ("nr_hugepages", total),
                    ("free_hugepages", free),
                    ("surplus_hugepages", 0),
                ],
            );
        }
        fs::create_dir_all(dir.join("proc")).unwrap();
        fs::write(dir.join("proc/meminfo"), "Hugepagesize:       2048 kB\n").unwrap();
        Root::at(dir).unwrap()
    }

    fn plan(pages: u64, fits: bool) -> Plan {
        let need = format!(
            r#"{{"kind":"weights","file":0,"page_size":2097152,"pages":{pages},"bytes":{}}}"#,
            pages << 21
        );
        let text = format!(
            r#"{{"model":"m.gguf","size":"2M","fits":{fits},"message":"","hint":"","needs":[{need}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_missing_is_added_to_what_others_have() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let plan = plan(120, false);
        let answer = answer(&root, &plan, false);
        assert_eq!(answer.pools[0].missing, 30);
        assert_eq!(answer.commands, ["sysctl vm.nr_hugepages=130"]);
        assert_eq!(answer.hvo, None);
        assert_eq!(answer.pools[0].nodes.len(), 2);
        assert_eq!(answer.pools[0].nodes[1].needed, None);
    }

    #[test]
    fn pages_from_all_nodes_in_turn_are_needed_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let plan = plan(51, false);
        let answer = answer(&root, &plan, true);
        let needed: Vec<_> = answer.pools[0]
            .nodes
            .iter()
            .map(|node| (node.node, node.needed, node.free))
            .collect();
        assert_eq!(needed, [(0, Some(26), 75), (1, Some(26), 15)]);
        for (width, lines) in [(80, 12), (120, 12)] {
            let text = text(
                Screen {
                    width,
                    colour: false,
                },
                &answer,
            );
            assert!(text.contains("pool  node  needed  total  free\n2M       0      26     80    75\n2M       1      26     20    15"), "{text}");
            assert!(
                text.lines().count() >= lines
                    && text.lines().all(|line| line.len() <= width.into()),
                "{text}"
            );
        }
    }
}
