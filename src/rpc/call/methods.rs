//! The methods of all services, and what is counted for each.
//!
//! Every method stands in the metrics with zeros from the start, under every
//! code, so that rates are right from the first call on. The table comes from
//! the descriptors; the counters of a method are looked up once.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use prometheus::{Histogram, IntCounter};
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use tonic::Code;

use crate::metrics;
use crate::proto;
use crate::rpc::status;

/// The codes, each at its number.
const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

/// Who sends one message, and who sends many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unary,
    ClientStream,
    ServerStream,
    BidiStream,
}

impl Kind {
    fn of(method: &MethodDescriptorProto) -> Kind {
        match (method.client_streaming(), method.server_streaming()) {
            (false, false) => Kind::Unary,
            (true, false) => Kind::ClientStream,
            (false, true) => Kind::ServerStream,
            (true, true) => Kind::BidiStream,
        }
    }

    /// As the metrics have it.
    fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ClientStream => "client_stream",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

/// What a learner answers (CLU-11). Of ranges only the serializable ones,
/// which the service itself looks at. Reflection is ours, and says nothing of
/// the data.
const SERVED_BY_LEARNERS: [(&str, &str); 5] = [
    ("etcdserverpb.KV", "Range"),
    ("etcdserverpb.Maintenance", "Status"),
    ("etcdserverpb.Maintenance", "Snapshot"),
    (
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
    ),
];

pub(super) struct Method {
    kind: Kind,
    is_served_by_learners: bool,
    service: String,
    name: String,
    started: IntCounter,
    handled: [IntCounter; CODES.len()],
    pub(super) received: IntCounter,
    sent: IntCounter,
    /// Only with the extensive metrics.
    seconds: OnceLock<Histogram>,
}

impl Method {
    fn new(service: &str, method: &MethodDescriptorProto) -> Method {
        let kind = Kind::of(method);
        let name = method.name();
        let labels = [kind.label(), service, name];
        Method {
            kind,
            is_served_by_learners: SERVED_BY_LEARNERS.contains(&(service, name)),
            service: service.to_owned(),
            name: name.to_owned(),
            started: metrics::GRPC_SERVER_STARTED_TOTAL.with_label_values(&labels),
            handled: CODES.map(|code| {
                let code = status::code_name(code);
                let labels = [kind.label(), service, name, code];
                metrics::GRPC_SERVER_HANDLED_TOTAL.with_label_values(&labels)
            }),
            received: metrics::GRPC_SERVER_MSG_RECEIVED_TOTAL.with_label_values(&labels),
            sent: metrics::GRPC_SERVER_MSG_SENT_TOTAL.with_label_values(&labels),
            seconds: OnceLock::new(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn is_unary(&self) -> bool {
        self.kind == Kind::Unary
    }

    pub(super) fn is_served_by_learners(&self) -> bool {
        self.is_served_by_learners
    }

    fn seconds(&self) -> &Histogram {
        self.seconds.get_or_init(|| {
            let labels = [self.kind.label(), &self.service, &self.name];
            metrics::GRPC_SERVER_HANDLING_SECONDS.with_label_values(&labels)
        })
    }
}

/// By path, `/package.Service/Method`.
static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let sets = [
        proto::DESCRIPTORS,
        proto::HEALTH_DESCRIPTORS,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = HashMap::new();
    for set in sets {
        let set = FileDescriptorSet::decode(set).expect("descriptors are compiled in");
        for file in &set.file {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    let path = format!("/{service_name}/{}", method.name());
                    methods.insert(path, Method::new(&service_name, method));
                }
            }
        }
    }
    methods
});

/// Makes every method appear in the metrics.
pub(in crate::rpc) fn initialize() {
    for method in METHODS.values() {
        if metrics::is_extensive() {
            method.seconds();
        }
    }
}

/// The methods of one service, each with its path.
pub(super) fn of_service(name: &str) -> impl Iterator<Item = (&'static str, &'static Method)> {
    METHODS
        .iter()
        .filter(move |(_, method)| method.service == name)
        .map(|(path, method)| (path.as_str(), method))
}

#[cfg(test)]
pub(super) fn find(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

/// One call in the metrics, from its start to its end. A call that is dropped
/// unfinished was given up by the client.
pub(super) struct Record {
    method: &'static Method,
    /// Only with the extensive metrics.
    started_at: Option<Instant>,
    is_finished: bool,
}

impl Record {
    pub(super) fn start(method: &'static Method) -> Record {
        method.started.inc();
        Record {
            method,
            started_at: metrics::is_extensive().then(Instant::now),
            is_finished: false,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.method.kind
    }

    pub(super) fn is_unary(&self) -> bool {
        self.method.is_unary()
    }

    pub(super) fn count_sent(&self, messages: u64) {
        self.method.sent.inc_by(messages);
    }

    pub(super) fn finish(mut self, code: Code) {
        self.count(code);
    }

    fn count(&mut self, code: Code) {
        self.is_finished = true;
        self.method.handled[code as usize].inc();
        if let Some(started_at) = self.started_at {
            let seconds = started_at.elapsed().as_secs_f64();
            self.method.seconds().observe(seconds);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_finished {
            self.count(Code::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_at_their_numbers() {
        for (number, code) in CODES.iter().enumerate() {
            assert_eq!(*code as usize, number);
            assert_eq!(Code::from_i32(number as i32), *code);
        }
    }

    #[test]
    fn every_method_appears_with_zeros() {
        initialize();
        let text = metrics::render();
        for line in [
            r#"grpc_server_started_total{grpc_method="MoveLeader",grpc_service="etcdserverpb.Maintenance",grpc_type="unary"} 0"#,
            r#"grpc_server_handled_total{grpc_code="Unauthenticated",grpc_method="Observe",grpc_service="v3electionpb.Election",grpc_type="server_stream"} 0"#,
            r#"grpc_server_msg_sent_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line}");
        }
    }

    #[test]
    fn a_dropped_call_is_a_cancelled_one() {
        let method = find("/v3lockpb.Lock/Unlock").unwrap();
        let of = |code: Code| method.handled[code as usize].get();
        Record::start(method).finish(Code::NotFound);
        drop(Record::start(method));
        assert_eq!((of(Code::NotFound), of(Code::Cancelled)), (1, 1));
        assert_eq!(method.started.get(), 2);
    }
}
