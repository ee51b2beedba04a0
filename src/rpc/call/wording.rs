//! Statuses that the gRPC library makes, not a service. Clients of etcd know
//! the words of Go's library (errors.tsv), and some look for them.

use http::HeaderMap;
use tonic::{Code, Status};

use crate::rpc::status;

/// How tonic refuses a message above the limit.
const TOO_LARGE: &str = "Error, decoded message length too large: found ";
const TOO_LARGE_LIMIT: &str = " bytes, the limit is: ";
const TOO_LARGE_END: &str = " bytes";

/// How tonic passes on prost's refusal of bytes that are no message, and what
/// prost says of one that nests too deep, which only transactions do.
const NOT_DECODED: &str = "failed to decode Protobuf message: ";
const TOO_DEEP: &str = "recursion limit reached";

/// The status that ends a call, if there is one in a head or trailers.
/// Replaces it there if it is the library's own refusal of a message that is
/// too large (LIM-2) or that it cannot decode.
pub(super) fn final_code(headers: &mut HeaderMap) -> Option<Code> {
    let status = headers.get(Status::GRPC_STATUS)?;
    let code = Code::from_bytes(status.as_bytes());
    // Only these codes come from the library; looking further costs a decoding.
    let reword = match code {
        Code::OutOfRange => too_large,
        Code::Internal => not_decoded,
        _ => return Some(code),
    };
    let reworded = Status::from_header_map(headers)
        .as_ref()
        .and_then(|status| reword(status.message()));
    let Some(status) = reworded else {
        return Some(code);
    };
    // Fails only for metadata that are no valid headers; there are none.
    let _ = status.add_header(headers);
    Some(status.code())
}

fn too_large(message: &str) -> Option<Status> {
    let (found, limit) = message
        .strip_prefix(TOO_LARGE)?
        .strip_suffix(TOO_LARGE_END)?
        .split_once(TOO_LARGE_LIMIT)?;
    Some(Status::resource_exhausted(format!(
        "grpc: received message larger than max ({found} vs. {limit})"
    )))
}

fn not_decoded(message: &str) -> Option<Status> {
    let reason = message.strip_prefix(NOT_DECODED)?;
    Some(if reason.contains(TOO_DEEP) {
        status::TOO_MANY_OPS.into()
    } else {
        Status::internal(
            "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data",
        )
    })
}

pub(super) fn unknown_method(method: &str, service: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}

pub(super) fn unknown_service(path: &str) -> Status {
    let path = path.strip_prefix('/').unwrap_or(path);
    let service = path.rsplit_once('/').map_or(path, |(service, _)| service);
    Status::unimplemented(format!("unknown service {service}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    #[test]
    fn large_messages_are_refused_in_go() {
        let status = Status::out_of_range(
            "Error, decoded message length too large: found 3000000 bytes, the limit is: 2097152 \
             bytes",
        );
        let mut headers = headers(&status);
        assert_eq!(final_code(&mut headers), Some(Code::ResourceExhausted));
        let reworded = Status::from_header_map(&headers).unwrap();
        assert_eq!(reworded.code(), Code::ResourceExhausted);
        assert_eq!(
            reworded.message(),
            "grpc: received message larger than max (3000000 vs. 2097152)"
        );
    }

    #[test]
    fn what_cannot_be_decoded_is_refused_in_go() {
        let code_of = |reason: &str| {
            let mut headers = headers(&Status::internal(reason));
            let code = final_code(&mut headers).unwrap();
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), code);
            code
        };
        let truncated = bytes::Bytes::from_static(&[0x0a]);
        let error = <crate::proto::etcdserverpb::PutRequest as prost::Message>::decode(truncated);
        assert_eq!(code_of(&error.unwrap_err().to_string()), Code::Internal);

        // A transaction in a transaction, 200 deep.
        let mut encoded = Vec::new();
        for _ in 0..200 {
            let mut outer = Vec::new();
            prost::encoding::bytes::encode(4, &encoded, &mut outer);
            encoded.clear();
            prost::encoding::bytes::encode(2, &outer, &mut encoded);
        }
        let error = <crate::proto::etcdserverpb::TxnRequest as prost::Message>::decode(&*encoded);
        assert_eq!(
            code_of(&error.unwrap_err().to_string()),
            Code::InvalidArgument
        );
    }

    #[test]
    fn other_statuses_stay() {
        let status = Status::from(status::COMPACTED);
        let mut headers = headers(&status);
        let before = headers.clone();
        assert_eq!(final_code(&mut headers), Some(Code::OutOfRange));
        assert_eq!(headers, before);
    }

    #[test]
    fn unknown_names() {
        assert_eq!(unknown_service("/a.B/C").message(), "unknown service a.B");
        assert_eq!(unknown_service("/a").message(), "unknown service a");
        assert_eq!(
            unknown_method("C", "a.B").message(),
            "unknown method C for service a.B"
        );
    }
}
