//! Which backups a set of keep rules keeps, and why. Pure: no I/O, no clock.
//!
//! Rules are evaluated for every group (source, name, host) on its own, newest backup first. A backup that any rule keeps
//! is kept. Days, hours, months and years are UTC's, weeks ISO 8601's.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use crate::id::ObjectId;
use crate::repo::snapshots::Snapshot;

/// What to keep. All zero and empty: no rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeepRules {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours, days... that have a backup.
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Everything younger than so many days.
    pub days: u32,
    /// Everything that carries one of these tags.
    pub tags: Vec<String>,
}

impl KeepRules {
    /// Whether there is no rule at all. Such a set keeps only the newest of each group, so nobody should mean it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The backups that are compared with each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    pub source: String,
    pub name: String,
    pub host: String,
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Last,
    Hourly(String),
    Daily(String),
    Weekly(String),
    Monthly(String),
    Yearly(String),
    /// Younger than so many days.
    Within(u32),
    Tag(String),
    /// No rule keeps any backup of its group, and it is the newest.
    Newest,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Last => write!(f, "last"),
            Reason::Hourly(hour) => write!(f, "hourly {hour}"),
            Reason::Daily(day) => write!(f, "daily {day}"),
            Reason::Weekly(week) => write!(f, "weekly {week}"),
            Reason::Monthly(month) => write!(f, "monthly {month}"),
            Reason::Yearly(year) => write!(f, "yearly {year}"),
            Reason::Within(days) => write!(f, "younger than {days} days"),
            Reason::Tag(tag) => write!(f, "tag {tag}"),
            Reason::Newest => write!(f, "newest of its source"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// What becomes of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: ObjectId,
    pub time: Timestamp,
    #[serde(flatten)]
    pub group: Group,
    pub keep: bool,
    /// Why it is kept; empty if it is not.
    pub reasons: Vec<Reason>,
}

/// Decides about every backup. Returned by group, newest first.
///
/// A group never loses all its backups: where no rule keeps one, the newest stays.
pub fn decide(snapshots: &[Snapshot], rules: &KeepRules, now: Timestamp) -> Vec<Decision> {
    let mut groups: BTreeMap<Group, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        let manifest = &snapshot.manifest;
        let group = Group { source: manifest.source.clone(), name: manifest.name.clone(), host: manifest.host.clone() };
        groups.entry(group).or_default().push(snapshot);
    }
    let mut decisions = Vec::with_capacity(snapshots.len());
    for (group, mut members) in groups {
        members.sort_by_key(|snapshot| {
            let manifest = &snapshot.manifest;
            std::cmp::Reverse((manifest.time, manifest.seq, snapshot.id))
        });
        let first = decisions.len();
        let mut periods = Periods::new(rules);
        for (position, snapshot) in members.into_iter().enumerate() {
            let time = snapshot.manifest.time;
            let mut reasons = Vec::new();
            if position < rules.last as usize {
                reasons.push(Reason::Last);
            }
            periods.add(time, &mut reasons);
            let age_max = SignedDuration::from_hours(24 * i64::from(rules.days));
            if rules.days > 0 && now.duration_since(time) < age_max {
                reasons.push(Reason::Within(rules.days));
            }
            let tags = rules.tags.iter().filter(|tag| snapshot.manifest.tags.contains(tag));
            reasons.extend(tags.cloned().map(Reason::Tag));
            let keep = !reasons.is_empty();
            decisions.push(Decision { id: snapshot.id, time, group: group.clone(), keep, reasons });
        }
        if decisions[first..].iter().all(|decision| !decision.keep) {
            decisions[first].keep = true;
            decisions[first].reasons.push(Reason::Newest);
        }
    }
    decisions
}

/// One rule by calendar period: keeps the first backup that it sees of each period, until its number is used up.
struct Period {
    left: u32,
    seen: Option<String>,
    name_of: fn(jiff::civil::DateTime) -> String,
    reason: fn(String) -> Reason,
}

struct Periods([Period; 5]);

impl Periods {
    fn new(rules: &KeepRules) -> Self {
        let period = |left, name_of, reason| Period { left, seen: None, name_of, reason };
        Self([
            period(rules.hourly, |time| time.strftime("%Y-%m-%dT%H").to_string(), Reason::Hourly),
            period(rules.daily, |time| time.date().to_string(), Reason::Daily),
            period(
                rules.weekly,
                |time| {
                    let week = time.date().iso_week_date();
                    format!("{:04}-W{:02}", week.year(), week.week())
                },
                Reason::Weekly,
            ),
            period(rules.monthly, |time| time.strftime("%Y-%m").to_string(), Reason::Monthly),
            period(rules.yearly, |time| time.strftime("%Y").to_string(), Reason::Yearly),
        ])
    }

    /// Times come newest first.
    fn add(&mut self, time: Timestamp, reasons: &mut Vec<Reason>) {
        let time = TimeZone::UTC.to_datetime(time);
        for period in self.0.iter_mut().filter(|period| period.left > 0) {
            let name = (period.name_of)(time);
            if period.seen.as_ref() != Some(&name) {
                period.left -= 1;
                reasons.push((period.reason)(name.clone()));
                period.seen = Some(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::{Manifest, StreamRef};
    use crate::id::HostId;
    use serde_json::Map;

    fn backup(group: &str, time: &str, tags: &[&str]) -> Snapshot {
        let time: Timestamp = time.parse().unwrap();
        let manifest = Manifest {
            vault: 1,
            time,
            source: "stdin".to_owned(),
            name: group.to_owned(),
            host: "h".to_owned(),
            host_id: HostId([0; 16]),
            seq: 1,
            previous: None,
            parent: None,
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            tool: String::new(),
            engine: Map::new(),
            consistency: Map::new(),
            warnings: vec![],
            options: Map::new(),
            items: 0,
            rows: 0,
            bytes: 0,
            bytes_new: 0,
            bytes_stored: 0,
            seconds: 0.0,
            chunkers: vec![],
            item_lines: StreamRef::default(),
        };
        Snapshot { id: ObjectId::of(format!("{group} {time}").as_bytes()), manifest }
    }

    /// The kept ones as `time: reasons`, oldest first.
    fn kept(backups: &[Snapshot], rules: &KeepRules, now: &str) -> Vec<String> {
        let decisions = decide(backups, rules, now.parse().unwrap());
        assert_eq!(decisions.len(), backups.len(), "every backup is decided about");
        let mut kept: Vec<_> = decisions
            .iter()
            .filter(|decision| decision.keep)
            .map(|decision| {
                let reasons: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
                format!("{} {}: {}", decision.group.name, decision.time, reasons.join(", "))
            })
            .collect();
        kept.sort();
        kept
    }

    fn rules(change: impl FnOnce(&mut KeepRules)) -> KeepRules {
        let mut rules = KeepRules::default();
        change(&mut rules);
        rules
    }

    const NOW: &str = "2026-01-10T12:00:00Z";

    #[test]
    fn the_newest_of_each_period_is_kept_with_its_reason() {
        let times = [
            "2023-06-01T00:00:00Z",
            "2024-12-29T10:00:00Z",
            "2024-12-30T10:00:00Z",
            "2025-11-30T23:59:59Z",
            "2025-12-01T00:00:00Z",
            "2025-12-31T23:30:00Z",
            "2026-01-01T00:30:00Z",
            "2026-01-04T10:00:00Z",
            "2026-01-09T09:10:00Z",
            "2026-01-09T09:50:00Z",
            "2026-01-10T08:00:00Z",
        ];
        let backups: Vec<_> = times.iter().map(|time| backup("a", time, &[])).collect();
        let table: [(KeepRules, &[&str]); 7] = [
            (rules(|r| r.last = 2), &["a 2026-01-09T09:50:00Z: last", "a 2026-01-10T08:00:00Z: last"]),
            (
                rules(|r| r.hourly = 2),
                &["a 2026-01-09T09:50:00Z: hourly 2026-01-09T09", "a 2026-01-10T08:00:00Z: hourly 2026-01-10T08"],
            ),
            (
                rules(|r| r.daily = 3),
                &[
                    "a 2026-01-04T10:00:00Z: daily 2026-01-04",
                    "a 2026-01-09T09:50:00Z: daily 2026-01-09",
                    "a 2026-01-10T08:00:00Z: daily 2026-01-10",
                ],
            ),
            // ISO weeks: 2025-12-31 and 2026-01-04 (a Sunday) are both in week 1 of 2026; 2024-12-30 is in week 1 of 2025.
            (
                rules(|r| r.weekly = 5),
                &[
                    "a 2024-12-30T10:00:00Z: weekly 2025-W01",
                    "a 2025-11-30T23:59:59Z: weekly 2025-W48",
                    "a 2025-12-01T00:00:00Z: weekly 2025-W49",
                    "a 2026-01-04T10:00:00Z: weekly 2026-W01",
                    "a 2026-01-10T08:00:00Z: weekly 2026-W02",
                ],
            ),
            (
                rules(|r| r.monthly = 3),
                &[
                    "a 2025-11-30T23:59:59Z: monthly 2025-11",
                    "a 2025-12-31T23:30:00Z: monthly 2025-12",
                    "a 2026-01-10T08:00:00Z: monthly 2026-01",
                ],
            ),
            (
                rules(|r| r.yearly = 9),
                &[
                    "a 2023-06-01T00:00:00Z: yearly 2023",
                    "a 2024-12-30T10:00:00Z: yearly 2024",
                    "a 2025-12-31T23:30:00Z: yearly 2025",
                    "a 2026-01-10T08:00:00Z: yearly 2026",
                ],
            ),
            (
                rules(|r| {
                    r.last = 1;
                    r.daily = 1;
                }),
                &["a 2026-01-10T08:00:00Z: last, daily 2026-01-10"],
            ),
        ];
        for (rules, expected) in table {
            assert_eq!(kept(&backups, &rules, NOW), expected, "{rules:?}");
        }
    }

    #[test]
    fn days_are_24_hours_back_from_now_and_the_edge_is_outside() {
        let backups = [
            backup("a", "2026-01-09T12:00:00Z", &[]),
            backup("a", "2026-01-09T12:00:01Z", &[]),
            backup("a", "2026-02-01T00:00:00Z", &[]),
        ];
        assert_eq!(
            kept(&backups, &rules(|r| r.days = 1), NOW),
            ["a 2026-01-09T12:00:01Z: younger than 1 days", "a 2026-02-01T00:00:00Z: younger than 1 days"],
            "one from the future (a clock that was wrong) is young"
        );
    }

    #[test]
    fn the_newest_of_a_group_is_never_dropped_by_age_alone() {
        let backups = [
            backup("dead-host", "2020-01-01T00:00:00Z", &[]),
            backup("dead-host", "2020-01-02T00:00:00Z", &[]),
            backup("live", "2026-01-10T00:00:00Z", &[]),
        ];
        assert_eq!(
            kept(&backups, &rules(|r| r.days = 30), NOW),
            ["dead-host 2020-01-02T00:00:00Z: newest of its source", "live 2026-01-10T00:00:00Z: younger than 30 days"]
        );
        assert_eq!(kept(&backups, &rules(|r| r.tags = vec!["x".into()]), NOW).len(), 2, "nor by a tag nobody has");
    }

    #[test]
    fn groups_count_for_themselves_and_tags_add() {
        let backups = [
            backup("a", "2026-01-01T00:00:00Z", &["gold", "x"]),
            backup("a", "2026-01-02T00:00:00Z", &[]),
            backup("a", "2026-01-03T00:00:00Z", &[]),
            backup("b", "2026-01-01T00:00:00Z", &[]),
        ];
        let rules = rules(|r| {
            r.last = 1;
            r.tags = vec!["gold".into(), "silver".into()];
        });
        assert_eq!(
            kept(&backups, &rules, NOW),
            ["a 2026-01-01T00:00:00Z: tag gold", "a 2026-01-03T00:00:00Z: last", "b 2026-01-01T00:00:00Z: last"]
        );
    }

    #[test]
    fn more_than_there_is_keeps_all_and_the_largest_numbers_do_not_overflow() {
        let backups = [backup("a", "2026-01-01T00:00:00Z", &[]), backup("a", "1970-01-01T00:00:00Z", &[])];
        let all = rules(|r| (r.last, r.days) = (u32::MAX, u32::MAX));
        assert_eq!(kept(&backups, &all, NOW).len(), 2);
        assert!(decide(&[], &all, NOW.parse().unwrap()).is_empty());
    }

    #[test]
    fn no_rule_is_no_rule() {
        assert!(KeepRules::default().is_empty());
        assert!(!rules(|r| r.tags = vec!["x".into()]).is_empty());
        assert!(!rules(|r| r.days = 1).is_empty());
    }
}
