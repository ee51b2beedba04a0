//! `/health`, `/livez`, `/readyz`: may traffic be sent here, and must this
//! process be restarted?
//!
//! `/health` is etcd's older probe with its JSON answer; `/livez` and
//! `/readyz` run named checks, each also reachable under its own path. A
//! member that is still starting fails every check, which is what a probe of
//! a metrics listener must see before the store is open. Paths, texts and
//! status codes are those of etcd's `etcdhttp/health.go`.

use axum::extract::{Path, Query, State as Extract};
use axum::response::Response;
use http::{Method, StatusCode, header};
use tracing::{debug, warn};

use super::{Alarm, Member, NOSNIFF, State, error, method_not_allowed, not_found, plain};
use crate::metrics;

/// The pairs of a query string, in order, repeated names included.
type Pairs = Query<Vec<(String, String)>>;

/// Why a check fails while no member is there to be asked.
const STARTING: &str = "the member is starting";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

/// A path with its checks.
struct Probe {
    name: &'static str,
    checks: &'static [Check],
}

const LIVEZ: Probe = Probe {
    name: "livez",
    checks: &[Check::SerializableRead],
};

const READYZ: Probe = Probe {
    name: "readyz",
    checks: &[
        Check::DataCorruption,
        Check::SerializableRead,
        Check::LinearizableRead,
        Check::NonLearner,
    ],
};

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, member: Option<&dyn Member>) -> Result<(), String> {
        let Some(member) = member else {
            return Err(STARTING.to_owned());
        };
        match self {
            Check::DataCorruption if member.alarms().contains(&Alarm::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Check::NonLearner if member.status().is_learner => {
                Err("not supported for learner".to_owned())
            }
            Check::DataCorruption | Check::NonLearner => Ok(()),
            Check::SerializableRead => member.read_local(),
            Check::LinearizableRead => member.read_linearizable().await,
        }
    }
}

pub(super) async fn livez(
    Extract(state): Extract<State>,
    method: Method,
    Query(query): Pairs,
) -> Response {
    answer_all(&state, &method, &LIVEZ, &query).await
}

pub(super) async fn readyz(
    Extract(state): Extract<State>,
    method: Method,
    Query(query): Pairs,
) -> Response {
    answer_all(&state, &method, &READYZ, &query).await
}

pub(super) async fn livez_check(
    Extract(state): Extract<State>,
    method: Method,
    Path(check): Path<String>,
    Query(query): Pairs,
) -> Response {
    answer_one(&state, &method, &LIVEZ, &check, &query).await
}

pub(super) async fn readyz_check(
    Extract(state): Extract<State>,
    method: Method,
    Path(check): Path<String>,
    Query(query): Pairs,
) -> Response {
    answer_one(&state, &method, &READYZ, &check, &query).await
}

/// The path itself: all its checks but those that `exclude=` names.
async fn answer_all(
    state: &State,
    method: &Method,
    probe: &Probe,
    query: &[(String, String)],
) -> Response {
    let is_excluded = |check: &Check| {
        query
            .iter()
            .any(|(key, value)| key == "exclude" && value == check.name())
    };
    let checks: Vec<Check> = probe
        .checks
        .iter()
        .copied()
        .filter(|check| !is_excluded(check))
        .collect();
    answer(state, method, probe, &checks, query).await
}

/// A path of one check; `exclude=` means nothing here.
async fn answer_one(
    state: &State,
    method: &Method,
    probe: &Probe,
    name: &str,
    query: &[(String, String)],
) -> Response {
    match probe.checks.iter().find(|check| check.name() == name) {
        Some(check) => answer(state, method, probe, &[*check], query).await,
        None => not_found().await,
    }
}

async fn answer(
    state: &State,
    method: &Method,
    probe: &Probe,
    checks: &[Check],
    query: &[(String, String)],
) -> Response {
    if method != Method::GET {
        return method_not_allowed();
    }
    let mut lines = String::new();
    let mut is_good = true;
    for check in checks {
        let result = check.run(state.member()).await;
        count(probe.name, check.name(), result.is_ok());
        match result {
            Ok(()) => lines += &format!("[+]{} ok\n", check.name()),
            Err(reason) => {
                is_good = false;
                lines += &format!("[-]{} failed: {reason}\n", check.name());
            }
        }
    }
    if !is_good {
        warn!(
            path = probe.name,
            result = lines.trim_end(),
            "health check failed"
        );
        return error(StatusCode::SERVICE_UNAVAILABLE, &lines);
    }
    if !query.iter().any(|(key, _)| key == "verbose") {
        lines.clear();
    }
    let mut response = plain(StatusCode::OK, lines + "ok\n");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

fn count(kind: &str, check: &str, is_good: bool) {
    let status = if is_good { "success" } else { "error" };
    metrics::SERVER_HEALTHCHECK
        .with_label_values(&[kind, check])
        .set(i64::from(is_good));
    metrics::SERVER_HEALTHCHECKS_TOTAL
        .with_label_values(&[kind, check, status])
        .inc();
}

/// The older probe: 200 or 503 with a JSON object whose values are strings.
pub(super) async fn health(
    Extract(state): Extract<State>,
    method: Method,
    Query(query): Pairs,
) -> Response {
    if method != Method::GET {
        return method_not_allowed();
    }
    match examine(state.member(), &query).await {
        Ok(()) => {
            metrics::SERVER_HEALTH_SUCCESS.inc();
            debug!("healthy");
            plain(StatusCode::OK, health_body(true, ""))
        }
        Err(reason) => {
            metrics::SERVER_HEALTH_FAILURES.inc();
            warn!(reason, "unhealthy");
            error(
                StatusCode::SERVICE_UNAVAILABLE,
                &health_body(false, &reason),
            )
        }
    }
}

fn health_body(is_healthy: bool, reason: &str) -> String {
    let reason = serde_json::Value::from(reason);
    format!(r#"{{"health":"{is_healthy}","reason":{reason}}}"#)
}

/// Alarms first, then the leader, then a read; the first failure decides.
async fn examine(member: Option<&dyn Member>, query: &[(String, String)]) -> Result<(), String> {
    let Some(member) = member else {
        return Err(STARTING.to_owned());
    };
    let is_excluded = |name: &str| {
        query
            .iter()
            .any(|(key, value)| key == "exclude" && value == name)
    };
    for alarm in member.alarms() {
        let name = match alarm {
            Alarm::NoSpace => "NOSPACE",
            Alarm::Corrupt => "CORRUPT",
            Alarm::Unknown => "UNKNOWN",
        };
        // Only the two real alarms can be left out.
        if alarm == Alarm::Unknown || !is_excluded(name) {
            return Err(format!("ALARM {name}"));
        }
    }
    let is_serializable = query
        .iter()
        .find(|(key, _)| key == "serializable")
        .is_some_and(|(_, value)| value == "true");
    let read = if is_serializable {
        member.read_local()
    } else if member.status().leader == 0 {
        return Err("RAFT NO LEADER".to_owned());
    } else {
        member.read_linearizable().await
    };
    read.map_err(|reason| format!("RANGE ERROR:{reason}"))
}
