//! Statuses that the gRPC library makes, not a service. Clients of etcd know
//! the words of Go's library (errors.tsv), and some look for them.

use http::HeaderMap;
use tonic::{Code, Status};

use super::methods::Kind;
use crate::proto::codec::{MAX_MESSAGE_BYTES, TOO_LARGE};
use crate::rpc::status;

/// How tonic passes on prost's refusal of bytes that are no message, and what
/// prost says of one that nests too deep, which only transactions do, and of
/// strings.
const NOT_DECODED: &str = "failed to decode Protobuf message: ";
const TOO_DEEP: &str = "recursion limit reached";
const NOT_UTF8: &str = "data is not UTF-8 encoded";

/// How tonic passes on why a message could not be decompressed, or that it
/// became too large.
const NOT_DECOMPRESSED: &str = "Error decompressing: ";
const TOO_LARGE_DECOMPRESSED: &str = "size limit, of ";

/// How tonic passes on what the encoder says.
const NOT_ENCODED: &str = "Error encoding: ";

/// The status that ends a call, if there is one in a head or trailers.
/// Replaces it there if it is the library's own refusal of a message.
pub(super) fn final_code(headers: &mut HeaderMap, kind: Kind) -> Option<Code> {
    let status = headers.get(Status::GRPC_STATUS)?;
    let code = Code::from_bytes(status.as_bytes());
    // Only these codes come from the library; looking further costs a decoding.
    if !matches!(code, Code::Internal | Code::ResourceExhausted) {
        return Some(code);
    }
    let reworded = Status::from_header_map(headers)
        .as_ref()
        .and_then(|status| reword(status.message(), kind));
    let Some(status) = reworded else {
        return Some(code);
    };
    // Fails only for metadata that are no valid headers; there are none.
    let _ = status.add_header(headers);
    Some(status.code())
}

fn reword(message: &str, kind: Kind) -> Option<Status> {
    if let Some(reason) = message.strip_prefix(NOT_DECODED) {
        return Some(not_decoded(reason, kind));
    }
    if let Some(reason) = message.strip_prefix(NOT_DECOMPRESSED) {
        return Some(not_decompressed(reason));
    }
    let size = too_large(message.strip_prefix(NOT_ENCODED)?)?;
    let library = if kind == Kind::Unary { "grpc: " } else { "" };
    Some(Status::resource_exhausted(format!(
        "{library}{TOO_LARGE} ({size} vs. {MAX_MESSAGE_BYTES})"
    )))
}

fn not_decoded(reason: &str, kind: Kind) -> Status {
    if reason.contains(TOO_DEEP) {
        return status::TOO_MANY_OPS.into();
    }
    let what = match kind {
        Kind::Unary => "error unmarshalling request",
        _ => "failed to unmarshal the received message",
    };
    let why = if reason.contains(NOT_UTF8) {
        "string field contains invalid UTF-8"
    } else {
        "proto: cannot parse invalid wire-format data"
    };
    Status::internal(format!("grpc: {what}: {why}"))
}

fn not_decompressed(reason: &str) -> Status {
    if let Some(rest) = reason.strip_prefix(TOO_LARGE_DECOMPRESSED) {
        let limit = rest.split(' ').next().unwrap_or_default();
        return Status::resource_exhausted(format!(
            "grpc: received message after decompression larger than max {limit}"
        ));
    }
    let why = if reason.contains("header") {
        "failed to decompress the message: gzip: invalid header"
    } else if reason.contains("checksum") {
        "failed to read decompressed data: gzip: invalid checksum"
    } else if reason.contains("corrupt deflate") {
        "failed to read decompressed data: flate: corrupt input"
    } else {
        "failed to read decompressed data: unexpected EOF"
    };
    Status::internal(format!("grpc: {why}"))
}

/// The size of a message that our encoder has refused.
fn too_large(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once(TOO_LARGE)?;
    rest.strip_prefix(" (")?
        .split_once(' ')
        .map(|(size, _)| size)
}

/// As Go quotes what it has been given.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for each in chunk.valid().chars() {
            match each {
                '"' | '\\' => text.extend(['\\', each]),
                '\t' => text.push_str("\\t"),
                _ if each.is_ascii_control() => text += &format!("\\x{:02x}", each as u32),
                _ => text.push(each),
            }
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// The refusal of an encoding that is not gzip.
pub(super) fn unknown_encoding(encoding: &[u8]) -> Status {
    Status::unimplemented(format!(
        "grpc: Decompressor is not installed for grpc-encoding {}",
        quoted(encoding)
    ))
}

/// The refusal of a path that names no method there is. What comes before the
/// last slash names the service.
pub(super) fn unknown_path(path: &str, services: &[&str]) -> Status {
    let names = path
        .strip_prefix('/')
        .and_then(|names| names.rsplit_once('/'));
    Status::unimplemented(match names {
        Some((service, method)) if services.contains(&service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {}", quoted(path.as_bytes())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    /// Code and text after the rewording.
    fn reworded(status: &Status, kind: Kind) -> (Code, String) {
        let mut headers = headers(status);
        let code = final_code(&mut headers, kind);
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(code, Some(status.code()));
        (status.code(), status.message().to_owned())
    }

    fn decoding<M: prost::Message + Default>(encoded: &[u8], kind: Kind) -> (Code, String) {
        let error = M::decode(encoded).err().unwrap();
        reworded(&Status::internal(error.to_string()), kind)
    }

    #[test]
    fn what_cannot_be_decoded_is_refused_in_go() {
        use crate::proto::etcdserverpb::{AuthUserAddRequest, PutRequest, TxnRequest};
        let unary = "grpc: error unmarshalling request: ";
        let stream = "grpc: failed to unmarshal the received message: ";
        let wire = "proto: cannot parse invalid wire-format data";
        let refused = |what: &str, why: &str| (Code::Internal, format!("{what}{why}"));
        let cut = [0x0a];
        assert_eq!(
            decoding::<PutRequest>(&cut, Kind::Unary),
            refused(unary, wire)
        );
        for kind in [Kind::BidiStream, Kind::ServerStream] {
            assert_eq!(decoding::<PutRequest>(&cut, kind), refused(stream, wire));
        }
        let name = [0x0a, 1, 0xff];
        let utf8 = "string field contains invalid UTF-8";
        assert_eq!(
            decoding::<AuthUserAddRequest>(&name, Kind::Unary),
            refused(unary, utf8)
        );

        // A transaction in a transaction, 200 deep.
        let mut encoded = Vec::new();
        for _ in 0..200 {
            let mut outer = Vec::new();
            prost::encoding::bytes::encode(4, &encoded, &mut outer);
            encoded.clear();
            prost::encoding::bytes::encode(2, &outer, &mut encoded);
        }
        let too_deep = decoding::<TxnRequest>(&encoded, Kind::Unary);
        let refusal = status::TOO_MANY_OPS;
        assert_eq!(too_deep, (refusal.code, refusal.text.to_owned()));
    }

    /// Beyond what a message can hold, and yet no memory: all records are one.
    #[tokio::test]
    async fn what_is_too_large_to_be_sent_is_refused_in_go() {
        use http_body_util::BodyExt as _;
        use tonic::codec::{Codec as _, EncodeBody};

        use crate::proto::codec::Codec;
        use crate::proto::etcdserverpb::{RangeRequest, RangeResponse};
        let record = bytes::Bytes::from(vec![0; 1 << 20]);
        let response = RangeResponse {
            kvs: vec![record; 2100],
            ..RangeResponse::default()
        };
        let bytes = prost::Message::encoded_len(&response);
        let responses = tokio_stream::once(Ok(response));
        let encoder = Codec::<RangeResponse, RangeRequest>::default().encoder();
        let override_ = tonic::codec::SingleMessageCompressionOverride::default();
        let body = EncodeBody::new_server(encoder, responses, None, override_, None);
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().unwrap();
        let too_large = format!("trying to send message larger than max ({bytes} vs. 2147483647)");
        for (kind, library) in [(Kind::Unary, "grpc: "), (Kind::ServerStream, "")] {
            let mut trailers = trailers.clone();
            let code = final_code(&mut trailers, kind);
            assert_eq!(code, Some(Code::ResourceExhausted));
            let status = Status::from_header_map(&trailers).unwrap();
            assert_eq!(status.message(), format!("{library}{too_large}"));
        }
    }

    #[test]
    fn other_statuses_stay() {
        for status in [
            Status::from(status::COMPACTED),
            Status::from(status::NO_SPACE),
            Status::internal("something else"),
        ] {
            let mut headers = headers(&status);
            let before = headers.clone();
            assert_eq!(final_code(&mut headers, Kind::Unary), Some(status.code()));
            assert_eq!(headers, before);
        }
    }

    /// As recorded from etcd 3.7.3.
    #[test]
    fn unknown_paths() {
        for (path, text) in [
            ("/", "malformed method name: \"/\""),
            ("/a", "malformed method name: \"/a\""),
            ("*", "malformed method name: \"*\""),
            ("/a/", "unknown service a"),
            ("//", "unknown service "),
            ("/a.B/C", "unknown service a.B"),
            ("/k.V/C", "unknown method C for service k.V"),
            ("/k.V/", "unknown method  for service k.V"),
            ("/k.V/C?x=1", "unknown method C?x=1 for service k.V"),
            ("//k.V/C", "unknown service /k.V"),
            ("/k.V/C/D", "unknown service k.V/C"),
            ("/k.V", "malformed method name: \"/k.V\""),
        ] {
            let status = unknown_path(path, &["k.V"]);
            assert_eq!(status.code(), Code::Unimplemented);
            assert_eq!(status.message(), text);
        }
    }

    #[test]
    fn bytes_are_quoted_as_in_go() {
        assert_eq!(quoted(b"a\"b\\"), r#""a\"b\\""#);
        assert_eq!(quoted("é\t\x01".as_bytes()), r#""é\t\x01""#);
        assert_eq!(quoted(b"\xff1"), r#""\xff1""#);
    }
}
