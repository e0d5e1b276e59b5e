//! The schema keeps to buf's STANDARD lint rules: the ones a descriptor shows are checked here, so that no tool is
//! needed to notice a deviation.

use std::collections::BTreeSet;

use kv_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn ours() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build encoded it");
    set.file.into_iter().filter(|file| file.package().starts_with("kv.")).collect()
}

fn messages(file: &FileDescriptorProto) -> Vec<DescriptorProto> {
    let mut found = file.message_type.clone();
    let mut next = 0;
    while let Some(message) = found.get(next).cloned() {
        found.extend(message.nested_type);
        next += 1;
    }
    found
}

fn enums(file: &FileDescriptorProto) -> Vec<EnumDescriptorProto> {
    file.enum_type.iter().cloned().chain(messages(file).into_iter().flat_map(|message| message.enum_type)).collect()
}

fn upper_snake(pascal: &str) -> String {
    let mut snake = String::new();
    for letter in pascal.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_uppercase());
    }
    snake
}

fn is_lower_snake(name: &str) -> bool {
    let edges = !name.starts_with('_') && !name.ends_with('_') && !name.contains("__");
    edges && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_uppercase())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric())
}

#[test]
fn packages_are_versioned_and_lie_in_folders_of_their_name() {
    let files = ours();
    assert_eq!(files.len(), 3);
    for file in files {
        let folder = file.package().replace('.', "/");
        let (path, _) = file.name().rsplit_once('/').unwrap();
        assert_eq!(path, folder, "{}", file.name());
        assert!(file.package().ends_with(".v1"));
        assert_eq!(file.syntax(), "proto3");
    }
}

#[test]
fn enum_values_carry_the_name_of_their_enum_and_zero_is_unspecified() {
    for enumeration in ours().iter().flat_map(enums) {
        let prefix = upper_snake(enumeration.name());
        assert_eq!(enumeration.value[0].number(), 0);
        assert_eq!(enumeration.value[0].name(), format!("{prefix}_UNSPECIFIED"));
        for value in &enumeration.value {
            assert!(value.name().starts_with(&format!("{prefix}_")), "{}", value.name());
        }
    }
}

#[test]
fn every_call_has_a_request_and_a_response_of_its_own_name() {
    let mut used = BTreeSet::new();
    for file in ours() {
        for service in &file.service {
            assert!(service.name().ends_with("Service") && is_pascal(service.name()), "{}", service.name());
            for call in &service.method {
                let name = |suffix| format!(".{}.{}{suffix}", file.package(), call.name());
                assert_eq!(call.input_type(), name("Request"));
                assert_eq!(call.output_type(), name("Response"));
                assert!(used.insert(call.input_type().to_owned()) && used.insert(call.output_type().to_owned()));
            }
        }
    }
}

#[test]
fn messages_are_pascal_case_and_fields_lower_snake_case() {
    for message in ours().iter().flat_map(messages) {
        assert!(is_pascal(message.name()), "{}", message.name());
        let fields = message.field.iter().map(|field| field.name());
        for name in fields.chain(message.oneof_decl.iter().map(|oneof| oneof.name())) {
            // proto3 optional makes a oneof of its own that begins with an underscore.
            assert!(is_lower_snake(name.trim_start_matches('_')), "{}.{name}", message.name());
        }
    }
}
