//! The compiled descriptors against etcd's API as a table
//! (`tests/data/api.tsv`): nothing missing, nothing different, nothing more.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

/// One row of the table: kind, full name and whatever else must agree.
type Rows = BTreeSet<String>;

#[test]
fn descriptors_are_those_of_etcd() {
    let set = FileDescriptorSet::decode(stele::proto::DESCRIPTORS).unwrap();
    let mut compiled = Rows::new();
    for file in &set.file {
        add_file(&mut compiled, file);
    }
    let expected = table(include_str!("data/api.tsv"));
    let missing: Vec<_> = expected.difference(&compiled).collect();
    let surplus: Vec<_> = compiled.difference(&expected).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "only in api.tsv: {missing:#?}\nonly compiled: {surplus:#?}"
    );
}

/// The table's rows, reduced to what descriptors say too.
fn table(text: &str) -> Rows {
    let mut rows = Rows::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let [kind, name, number, field_type, label, extra] = cells[..] else {
            panic!("not six cells: {line}");
        };
        let extra = |key: &str| {
            let mut entries = extra.split(" ; ").filter_map(|entry| entry.split_once('='));
            entries.find(|entry| entry.0 == key).map(|entry| entry.1)
        };
        let row = match kind {
            "package" => format!("package {name} {}", extra("syntax").unwrap()),
            "service" | "message" | "enum" => format!("{kind} {name}"),
            "rpc" => rpc_row(
                name,
                extra("request").unwrap(),
                extra("response").unwrap(),
                extra("client_streaming").unwrap() == "yes",
                extra("server_streaming").unwrap() == "yes",
            ),
            "field" => {
                let short_name = name.rsplit('.').next().unwrap();
                let json_name = extra("json_name").unwrap_or(short_name);
                field_row(name, number, field_type, label, json_name)
            }
            "value" => format!("value {name} {number}"),
            _ => panic!("unknown kind: {line}"),
        };
        assert!(rows.insert(row), "twice in the table: {line}");
    }
    rows
}

fn rpc_row(name: &str, request: &str, response: &str, client: bool, server: bool) -> String {
    format!("rpc {name} ({request}, streaming {client}) -> ({response}, streaming {server})")
}

fn field_row(name: &str, number: &str, field_type: &str, label: &str, json_name: &str) -> String {
    format!("field {name} = {number}: {label} {field_type}, in JSON {json_name}")
}

fn add_file(rows: &mut Rows, file: &FileDescriptorProto) {
    let package = file.package();
    rows.insert(format!("package {package} {}", file.syntax()));
    for message in &file.message_type {
        add_message(rows, package, message);
    }
    for definition in &file.enum_type {
        add_enum(rows, package, definition);
    }
    for service in &file.service {
        add_service(rows, package, service);
    }
}

fn add_message(rows: &mut Rows, parent: &str, message: &DescriptorProto) {
    let name = format!("{parent}.{}", message.name());
    rows.insert(format!("message {name}"));
    for field in &message.field {
        rows.insert(field_row(
            &format!("{name}.{}", field.name()),
            &field.number().to_string(),
            &type_name(field),
            &label(message, field),
            field.json_name(),
        ));
    }
    for nested in &message.nested_type {
        add_message(rows, &name, nested);
    }
    for definition in &message.enum_type {
        add_enum(rows, &name, definition);
    }
}

fn add_enum(rows: &mut Rows, parent: &str, definition: &EnumDescriptorProto) {
    let name = format!("{parent}.{}", definition.name());
    rows.insert(format!("enum {name}"));
    for value in &definition.value {
        rows.insert(format!("value {name}.{} {}", value.name(), value.number()));
    }
}

fn add_service(rows: &mut Rows, package: &str, service: &ServiceDescriptorProto) {
    let name = format!("{package}.{}", service.name());
    rows.insert(format!("service {name}"));
    for method in &service.method {
        rows.insert(rpc_row(
            &format!("{name}/{}", method.name()),
            method.input_type().trim_start_matches('.'),
            method.output_type().trim_start_matches('.'),
            method.client_streaming(),
            method.server_streaming(),
        ));
    }
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let referred = field.type_name().trim_start_matches('.');
    match field.r#type() {
        Type::Message => format!("message {referred}"),
        Type::Enum => format!("enum {referred}"),
        Type::Bool => "bool".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::String => "string".to_owned(),
        Type::Int32 => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Uint32 => "uint32".to_owned(),
        Type::Uint64 => "uint64".to_owned(),
        other => panic!("the API has no {other:?}"),
    }
}

fn label(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    assert!(!field.proto3_optional(), "the API has no explicit presence");
    match (field.oneof_index, field.label()) {
        (Some(index), _) => format!("oneof {}", message.oneof_decl[index as usize].name()),
        (None, Label::Repeated) => "repeated".to_owned(),
        (None, Label::Optional | Label::Required) => "optional".to_owned(),
    }
}
