//! What the system says of this process. Where there is no `/proc`, nothing.

use std::fs;

use prometheus::proto::MetricFamily;

use super::names::router as names;

/// Clock ticks per second in `/proc/*/stat`: `USER_HZ`, which is 100 on every architecture that
/// Linux and Rust's standard library share (`include/asm-generic/param.h`).
const TICKS: f64 = 100.0;

pub(super) fn collect(families: &mut Vec<MetricFamily>) {
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let field = |name: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        families.extend(field("VmRSS").map(|kib| names::RESIDENT_MEMORY.single(kib * 1024.0)));
        families.extend(field("VmSize").map(|kib| names::VIRTUAL_MEMORY.single(kib * 1024.0)));
        families.extend(field("Threads").map(|n| names::THREADS.single(n)));
    }
    if let Some(times) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Times::parse) {
        families.push(names::CPU.single(times.cpu));
        families.extend(boot_time().map(|boot| names::START_TIME.single(boot + times.started)));
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory being read.
        families.push(names::OPEN_FDS.single(fds.count().saturating_sub(1) as f64));
    }
    families.extend(max_fds().map(|n| names::MAX_FDS.single(n)));
}

/// Seconds of processor time, and from boot to start.
struct Times {
    cpu: f64,
    started: f64,
}

impl Times {
    /// Reads `/proc/*/stat`, in which the second field, in parentheses, may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        // The first of these is field 3; proc(5) has utime, stime and starttime as 14, 15 and 22.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        Some(Self { cpu: (ticks(14)? + ticks(15)?) / TICKS, started: ticks(22)? / TICKS })
    }
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_an_odd_name() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 4 0 1234 0";
        let times = Times::parse(stat).unwrap();
        assert_eq!((times.cpu, times.started), (2.0, 12.34));
        assert!(Times::parse("7 (a) S 1 2").is_none());
        assert!(Times::parse("").is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn everything_is_there() {
        let mut families = Vec::new();
        collect(&mut families);
        let value = |name: &str| {
            let family = families.iter().find(|f| f.name() == name).unwrap();
            let metric = &family.get_metric()[0];
            metric.get_gauge().get_value().max(metric.get_counter().get_value())
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((0.0..86_400.0).contains(&(now + 2.0 - value("process_start_time_seconds"))));
        assert!(value("process_cpu_seconds_total") < 86_400.0);
    }
}
