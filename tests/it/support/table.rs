//! The table in the log: the backing of the server's memory, as the server reports it.

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub kind: String,
    pub on: String,
    pub mib: f64,
    pub pages: u64,
}

#[derive(Debug)]
pub struct Table {
    pub rows: Vec<Row>,
    /// `X of Y MiB on huge pages (Z %)`
    pub huge_mib: f64,
    pub total_mib: f64,
    pub percent: f64,
}

impl Table {
    /// The last table of the log, because a server with a draft model logs two.
    pub fn of(log: &str) -> Self {
        // A log prefixes each line, and other outputs only the first one.
        let lines: Vec<_> = log
            .lines()
            .map(|line| {
                line.split_once("hugepages: ")
                    .map_or(line, |(_, rest)| rest)
            })
            .collect();
        let head = lines
            .iter()
            .rposition(|line| line.contains("kind       on "))
            .unwrap_or_else(|| panic!("no table\n{log}"));
        let mut rows = Vec::new();
        for line in &lines[head + 1..] {
            let fields: Vec<_> = line.split_whitespace().collect();
            // 91.75 of 92.00 MiB on huge pages (99.7 %)
            if let [huge, "of", total, "MiB", "on", "huge", "pages", percent, ..] = fields[..] {
                let number = |text: &str| text.parse().expect("a number");
                return Self {
                    rows,
                    huge_mib: number(huge),
                    total_mib: number(total),
                    percent: number(percent.trim_start_matches('(')),
                };
            }
            rows.push(Row {
                kind: fields[0].to_owned(),
                on: fields[1].to_owned(),
                mib: fields[2].parse().expect("a number"),
                pages: fields[3].parse().expect("a number"),
            });
        }
        panic!("the table has no sum\n{log}")
    }

    /// MiB of a kind on a backing; 0 without such a line.
    pub fn mib(&self, kind: &str, on: &str) -> f64 {
        self.find(kind, on).map_or(0.0, |row| row.mib)
    }

    pub fn pages(&self, kind: &str, on: &str) -> u64 {
        self.find(kind, on).map_or(0, |row| row.pages)
    }

    pub fn has(&self, kind: &str, on: &str) -> bool {
        self.find(kind, on).is_some()
    }

    fn find(&self, kind: &str, on: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.kind == kind && row.on == on)
    }
}
