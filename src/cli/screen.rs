//! What people see while they wait, and how numbers look.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::settings::Global;
use crate::progress::Progress;

/// How often a terminal is redrawn, and how often a log gets a line.
const REDRAW: Duration = Duration::from_millis(100);
const LOG_LINE: Duration = Duration::from_secs(60);
/// Nothing is shown of what takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows an operation's progress until dropped.
pub struct Screen {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// Starts showing, unless the settings say not to.
    pub fn start(global: &Global, progress: Progress) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        if global.quiet || global.no_progress || (global.json && !std::io::stderr().is_terminal()) {
            return Self { stop, thread: None };
        }
        let terminal = std::io::stderr().is_terminal();
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || if terminal { draw(&progress, &stop) } else { log(&progress, &stop) })
        };
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn draw(progress: &Progress, stop: &AtomicBool) {
    let started = Instant::now();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = |template: &str| ProgressStyle::with_template(template).expect("the template is one of those below");
    while !stop.load(Relaxed) {
        if started.elapsed() > PATIENCE {
            let view = progress.view();
            bar.set_message(view.doing.clone());
            if view.bytes_total > 0 {
                bar.set_style(style(
                    "{elapsed_precise} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta} {wide_msg}",
                ));
                bar.set_length(view.bytes_total.max(view.bytes));
                bar.set_position(view.bytes);
            } else if view.bytes > 0 {
                bar.set_style(style("{elapsed_precise} {spinner} {bytes} {binary_bytes_per_sec} {wide_msg}"));
                bar.set_position(view.bytes);
            } else if view.items_total > 0 {
                bar.set_style(style("{elapsed_precise} [{bar:24}] {pos}/{len} eta {eta} {wide_msg}"));
                bar.set_length(view.items_total);
                bar.set_position(view.items);
            } else {
                bar.set_style(style("{elapsed_precise} {spinner} {wide_msg}"));
            }
            bar.tick();
        }
        std::thread::park_timeout(REDRAW);
    }
    bar.finish_and_clear();
}

fn log(progress: &Progress, stop: &AtomicBool) {
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        std::thread::park_timeout(LOG_LINE.saturating_sub(last.elapsed()));
        if last.elapsed() >= LOG_LINE {
            last = Instant::now();
            let view = progress.view();
            let of = |total: u64| if total > 0 { format!(" of {}", size(total)) } else { String::new() };
            eprintln!("vault: {} {}{}", view.doing, size(view.bytes), of(view.bytes_total));
        }
    }
}

/// Bytes for people: `93.8 MB`.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// Large numbers with thin spaces left out and commas in: `3,000,000`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A table as all commands show it: no frame, two spaces between columns.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header.iter().map(|cell| cell.to_uppercase()));
    table
}

/// A table as it is printed: without the spaces at the ends of its lines.
pub fn lines_of(table: &comfy_table::Table) -> String {
    let text = table.to_string();
    let lines: Vec<_> = text.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or(line)).collect();
    lines.join("\n")
}

/// A time for people, in this host's time zone.
pub fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
