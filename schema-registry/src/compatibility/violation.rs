//! One thing that does not fit, in the words of Confluent's registry.

use std::fmt;

/// What kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViolationKind {
    /// Fixed types of two sizes.
    FixedSizeMismatch,
    /// A type that the reader cannot make of the writer's.
    TypeMismatch,
    /// Another name, and no alias.
    NameMismatch,
    /// The writer may write a symbol that the reader does not have.
    MissingEnumSymbols,
    /// The writer may write what no branch of the reader takes.
    MissingUnionBranch,
    /// The reader has a field that the writer does not write, and no default for it.
    ReaderFieldMissingDefaultValue,
}

impl ViolationKind {
    /// As it is told.
    pub fn name(self) -> &'static str {
        match self {
            ViolationKind::FixedSizeMismatch => "FIXED_SIZE_MISMATCH",
            ViolationKind::TypeMismatch => "TYPE_MISMATCH",
            ViolationKind::NameMismatch => "NAME_MISMATCH",
            ViolationKind::MissingEnumSymbols => "MISSING_ENUM_SYMBOLS",
            ViolationKind::MissingUnionBranch => "MISSING_UNION_BRANCH",
            ViolationKind::ReaderFieldMissingDefaultValue => "READER_FIELD_MISSING_DEFAULT_VALUE",
        }
    }
}

/// One thing that does not fit between a reader's and a writer's schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind.
    pub kind: ViolationKind,
    /// Where in the reader's schema, with the writer's places inside of unions: `/fields/0/type`.
    pub path: String,
    /// The names, sizes or symbols.
    pub detail: String,
    /// Which is the reader and which the writer: `["new", "old"]` where
    /// the new schema reads what the old one wrote.
    pub sides: [&'static str; 2],
}

impl Violation {
    /// What is wrong, in a sentence.
    pub fn description(&self) -> String {
        let Self { kind, path, detail, sides: [reader, writer] } = self;
        match kind {
            ViolationKind::FixedSizeMismatch => format!(
                "The size of FIXED type field at path '{path}' in the {reader} schema does not match with the {writer} schema"
            ),
            ViolationKind::TypeMismatch => format!(
                "The type (path '{path}') of a field in the {reader} schema does not match with the {writer} schema"
            ),
            ViolationKind::NameMismatch => format!("The name of the schema has changed (path '{path}')"),
            ViolationKind::MissingEnumSymbols => format!(
                "The {reader} schema is missing enum symbols '{detail}' at path '{path}' in the {writer} schema"
            ),
            ViolationKind::MissingUnionBranch => format!(
                "The {reader} schema is missing a type inside a union field at path '{path}' in the {writer} schema"
            ),
            ViolationKind::ReaderFieldMissingDefaultValue => format!(
                "The field '{detail}' at path '{path}' in the {reader} schema has no default value and is missing in the {writer} schema"
            ),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, detail, .. } = self;
        let (kind, description) = (kind.name(), self.description());
        write!(f, "{{errorType:'{kind}', description:'{description}', additionalInfo:'{detail}'}}")
    }
}
