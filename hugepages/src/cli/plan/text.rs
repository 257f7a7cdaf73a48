//! The demand as tables and sentences.

use std::collections::BTreeMap;
use std::path::Path;

use hugepages::kernel::HugePageSize;
use hugepages::plan::{Context, Demand, Memory, Need, Plan};
use hugepages::size::ByteSize;

use crate::cli::output::{self, Screen};

/// The value of `--hugepage-size`, such as `2M`.
fn size_name(bytes: u64) -> String {
    HugePageSize::new(bytes).map_or_else(|| "base".to_owned(), HugePageSize::short_name)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    output::printable(&name.to_string_lossy())
}

fn is_of_one_model(plan: &Plan) -> bool {
    plan.needs.iter().all(|need| need.model == plan.model)
}

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 20))
}

/// Tables of the needs, the pools and the nodes.
fn tables(screen: Screen, demand: &Demand) -> Vec<String> {
    let plan = demand.plan;
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
    let is_one = is_of_one_model(plan);
    let rows = plan.needs.iter().map(|need| {
        vec![
            need.kind.clone(),
            place(need),
            on(need.page_size),
            need.pages.to_string(),
            mib(need.bytes),
            file_name(&need.model),
        ]
    });
    let head = ["kind", "source", "backing", "pages", "MiB", "model"];
    let mut parts = Vec::new();
    if !plan.router.is_empty() {
        let rows = plan.router.iter().map(|model| {
            let pages = model.bytes.map_or_else(|| "-".to_owned(), mib);
            let alone = if model.fits { "fits" } else { "does not fit" };
            vec![output::printable(&model.name), pages, alone.to_owned()]
        });
        let head = ["model", "MiB of huge pages", "alone"];
        parts.push(output::table(screen, &head, rows));
    }
    parts.push(table_of_models(screen, &head, rows, is_one));

    parts.extend(workers(screen, plan, is_one));

    let pools = demand.pools.iter().map(|pool| {
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
        row.push(mib(pool.waste_bytes));
        row
    });
    if !demand.pools.is_empty() {
        let head = [
            "pool",
            "needed",
            "usable",
            "missing",
            "total",
            "free",
            "reserved",
            "surplus",
            "waste MiB",
        ];
        parts.push(output::table(screen, &head, pools));
    }

    let nodes = demand.pools.iter().flat_map(|pool| {
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

/// A table whose last column is the model. The needs of a single model do not name it.
fn table_of_models(
    screen: Screen,
    head: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
    is_one: bool,
) -> String {
    let columns = head.len() - usize::from(is_one);
    let rows = rows.map(|mut row| {
        row.truncate(columns);
        row
    });
    output::table(screen, &head[..columns], rows)
}

/// The needs of each RPC worker; `None` without workers.
fn workers(screen: Screen, plan: &Plan, is_one: bool) -> Option<String> {
    let rows = plan.workers.iter().map(|need| {
        vec![
            output::printable(&need.worker),
            need.device.clone(),
            need.kind.clone(),
            size_name(need.page_size),
            need.pages.to_string(),
            mib(need.bytes),
            file_name(&need.model),
        ]
    });
    let head = ["worker", "device", "kind", "page", "pages", "MiB", "model"];
    (!plan.workers.is_empty()).then(|| table_of_models(screen, &head, rows, is_one))
}

fn ordinary_memory(memory: &Memory) -> String {
    let size = ByteSize::new;
    let cache = match memory.prompt_cache {
        Some(0) => String::new(),
        Some(bytes) => format!(", later up to {} for the prompt cache", size(bytes)),
        None => ", later any amount for the prompt cache".to_owned(),
    };
    let buffers = match memory.buffers {
        0 => String::new(),
        bytes => format!(" and {} for buffers without huge pages", size(bytes)),
    };
    format!(
        "ordinary memory: {} for the process{buffers}{cache}; {} are available",
        size(memory.process),
        size(memory.available)
    )
}

pub fn text(screen: Screen, demand: &Demand) -> String {
    let plan = demand.plan;
    let mut parts = tables(screen, demand);
    let mut lines = Vec::new();
    let is_shorter = |context: &&Context| context.tokens < context.full_tokens;
    if let Some(context) = plan.context.as_ref().filter(is_shorter) {
        lines.push(format!(
            "context: {} of {} tokens, because the pools hold no more; all of them need {} of huge pages. -c sets the context",
            context.tokens,
            context.full_tokens,
            ByteSize::new(context.full_bytes)
        ));
    }
    if let Some(memory) = &plan.memory {
        lines.push(ordinary_memory(memory));
    }
    if let Some((local, all)) = plan.local_bytes() {
        lines.push(format!(
            "local: {:.1} % of the weight matrices ({} of {} MiB) are on the node of the threads that read them",
            100.0 * local as f64 / all as f64,
            mib(local),
            mib(all)
        ));
    }
    for (worker, pages) in plan.worker_pages() {
        lines.push(format!(
            "worker {}: with --hugepages, it needs {pages} pages of 2 MiB ({}) on its own machine",
            output::printable(worker),
            ByteSize::new(pages << 21)
        ));
    }
    if plan.fits {
        let what = if is_of_one_model(plan) {
            "the model fits"
        } else {
            "all models fit together"
        };
        lines.push(what.to_owned());
    } else {
        lines.push(format!("the plan does not fit: {}", plan.message));
        lines.push(format!("hint: {}", plan.hint));
    }
    for model in plan.router.iter().filter(|model| model.bytes.is_none()) {
        let cause = model.message.lines().find(|line| line.contains(" E "));
        let cause = cause.unwrap_or("it cannot be loaded");
        let line = format!("no plan for {}: {cause}", model.name);
        lines.push(output::printable(&line));
    }
    for command in &demand.commands {
        lines.push(format!("now:          {command}"));
    }
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (file, line) in &demand.persistent {
        files.entry(file).or_default().push(line);
    }
    for (file, settings) in files {
        for setting in settings {
            lines.push(format!("at each boot: {setting}   in {file}"));
        }
    }
    parts.push(lines.join("\n"));

    let hvo: u64 = demand.pools.iter().map(|pool| pool.hvo_bytes).sum();
    let hvo = match demand.hvo {
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
        ByteSize::new(demand.page_table_bytes),
        ByteSize::new(demand.page_table_bytes_4k)
    ));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use hugepages::plan::{NodeDemand, PoolDemand};

    use super::*;

    #[test]
    fn workers_have_a_table_of_their_own_and_a_sum() {
        let plan = r#"{"model":"m.gguf","size":"2M","fits":true,"message":"","hint":"","needs":[],"workers":[
            {"model":"m.gguf","worker":"10.0.0.2:50052","device":"RPC0","kind":"weights","page_size":2097152,"pages":51,"bytes":106954752},
            {"model":"m.gguf","worker":"10.0.0.2:50052","device":"RPC0","kind":"kv","page_size":2097152,"pages":3,"bytes":6291456}]}"#;
        let plan: Plan = serde_json::from_str(plan).unwrap();
        let demand = Demand {
            plan: &plan,
            pools: Vec::new(),
            commands: Vec::new(),
            persistent: Vec::new(),
            hvo: None,
            page_table_bytes: 0,
            page_table_bytes_4k: 0,
        };
        let screen = Screen {
            width: 120,
            colour: false,
        };
        let text = text(screen, &demand);
        assert!(
            text.contains("10.0.0.2:50052  RPC0    weights    2M     51  102.00\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "worker 10.0.0.2:50052: with --hugepages, it needs 54 pages of 2 MiB (108 MiB)"
            ),
            "{text}"
        );
    }

    #[test]
    fn each_line_fits_on_the_screen_and_each_node_has_one() {
        let plan = r#"{"model":"m.gguf","size":"2M","fits":false,"message":"","hint":"","needs":[
            {"model":"m.gguf","kind":"weights","file":0,"page_size":2097152,"pages":51,"bytes":106954752}]}"#;
        let plan: Plan = serde_json::from_str(plan).unwrap();
        let node = |node, total, free| NodeDemand {
            node,
            needed: Some(26),
            total,
            free,
        };
        let demand = Demand {
            plan: &plan,
            pools: vec![PoolDemand {
                page_size: 2 << 20,
                needed: 51,
                total: 100,
                free: 90,
                reserved: 0,
                surplus: 0,
                overcommit: 0,
                usable: 90,
                missing: 0,
                waste_bytes: 1000 << 20,
                nodes: vec![node(0, 80, 75), node(1, 20, 15)],
                hvo_bytes: 0,
            }],
            commands: Vec::new(),
            persistent: Vec::new(),
            hvo: None,
            page_table_bytes: 408,
            page_table_bytes_4k: 208_896,
        };
        for (width, lines) in [(80, 12), (120, 12)] {
            let screen = Screen {
                width,
                colour: false,
            };
            let text = text(screen, &demand);
            assert!(text.contains("pool  node  needed  total  free\n2M       0      26     80    75\n2M       1      26     20    15"), "{text}");
            assert!(
                text.lines().count() >= lines
                    && text.lines().all(|line| line.len() <= width.into()),
                "{text}"
            );
        }
    }
}
