//! A table's rows as Arrow columns: Avro bodies decoded straight into builders,
//! by a plan made once per schema.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder,
    Int32Builder, Int64Builder, StringBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, ListArray, MapArray, StructArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::extension::{EXTENSION_TYPE_METADATA_KEY, EXTENSION_TYPE_NAME_KEY};
use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};
use connector::{Malformed, Reader, Type, decimal_to_i128, decimal_to_text};

/// Parquet's greatest decimal of 128 bits.
const WIDEST: u32 = 38;

/// The Arrow type of a column.
pub(crate) fn data_type(ty: &Type) -> DataType {
    match ty {
        Type::Boolean => DataType::Boolean,
        Type::Int => DataType::Int32,
        Type::Long => DataType::Int64,
        Type::Float => DataType::Float32,
        Type::Double => DataType::Float64,
        Type::String | Type::Uuid | Type::Json => DataType::Utf8,
        Type::Bytes => DataType::Binary,
        Type::Decimal { precision, scale } if *precision <= WIDEST => {
            DataType::Decimal128(*precision as u8, *scale as i8)
        }
        Type::Decimal { .. } => DataType::Utf8,
        Type::Date => DataType::Date32,
        Type::Time => DataType::Time64(TimeUnit::Microsecond),
        Type::LocalTimestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::Array(element) => DataType::List(Arc::new(field("element", element))),
        Type::Map => DataType::Map(entries(), false),
        Type::Record(fields) => DataType::Struct(fields.iter().map(|f| field(&f.name, &f.ty)).collect()),
    }
}

fn entries() -> FieldRef {
    let fields: Fields =
        vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)].into();
    Arc::new(Field::new("entries", DataType::Struct(fields), false))
}

/// A nullable field; json says that it is.
pub(crate) fn field(name: &str, ty: &Type) -> Field {
    let field = Field::new(name, data_type(ty), true);
    match ty {
        Type::Json => field.with_metadata(HashMap::from([
            (EXTENSION_TYPE_NAME_KEY.to_owned(), "arrow.json".to_owned()),
            (EXTENSION_TYPE_METADATA_KEY.to_owned(), String::new()),
        ])),
        _ => field,
    }
}

/// Builds one column.
pub(crate) enum Column {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Decimal(Decimal128Builder),
    WideDecimal(StringBuilder, u32),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder, bool),
    List { element: Box<Column>, field: FieldRef, offsets: Vec<i32>, nulls: NullBufferBuilder },
    Map { keys: StringBuilder, values: StringBuilder, offsets: Vec<i32>, nulls: NullBufferBuilder },
    Struct { columns: Vec<Column>, fields: Fields, nulls: NullBufferBuilder },
}

impl Column {
    pub(crate) fn new(ty: &Type) -> Self {
        match ty {
            Type::Boolean => Column::Boolean(BooleanBuilder::new()),
            Type::Int => Column::Int(Int32Builder::new()),
            Type::Long => Column::Long(Int64Builder::new()),
            Type::Float => Column::Float(Float32Builder::new()),
            Type::Double => Column::Double(Float64Builder::new()),
            Type::String | Type::Uuid | Type::Json => Column::Text(StringBuilder::new()),
            Type::Bytes => Column::Bytes(BinaryBuilder::new()),
            Type::Decimal { precision, .. } if *precision <= WIDEST => {
                Column::Decimal(Decimal128Builder::new().with_data_type(data_type(ty)))
            }
            Type::Decimal { scale, .. } => Column::WideDecimal(StringBuilder::new(), *scale),
            Type::Date => Column::Date(Date32Builder::new()),
            Type::Time => Column::Time(Time64MicrosecondBuilder::new()),
            Type::LocalTimestamp => Column::Timestamp(TimestampMicrosecondBuilder::new(), false),
            Type::Timestamp => Column::Timestamp(TimestampMicrosecondBuilder::new(), true),
            Type::Array(inner) => Column::List {
                element: Box::new(Column::new(inner)),
                field: Arc::new(field("element", inner)),
                offsets: vec![0],
                nulls: NullBufferBuilder::new(0),
            },
            Type::Map => Column::Map {
                keys: StringBuilder::new(),
                values: StringBuilder::new(),
                offsets: vec![0],
                nulls: NullBufferBuilder::new(0),
            },
            Type::Record(fields) => Column::structure(fields.iter().map(|f| (f.name.as_str(), &f.ty))),
        }
    }

    /// A struct of nullable columns.
    pub(crate) fn structure<'a>(columns: impl Iterator<Item = (&'a str, &'a Type)> + Clone) -> Self {
        Column::Struct {
            fields: columns.clone().map(|(name, ty)| field(name, ty)).collect(),
            columns: columns.map(|(_, ty)| Column::new(ty)).collect(),
            nulls: NullBufferBuilder::new(0),
        }
    }

    /// The next value of a `["null", T]`.
    #[inline]
    pub(crate) fn nullable(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        if reader.present()? {
            self.value(reader)
        } else {
            self.null();
            Ok(())
        }
    }

    /// The next value of a `T`.
    #[inline]
    pub(crate) fn value(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        match self {
            Column::Boolean(to) => to.append_value(reader.boolean()?),
            Column::Int(to) => to.append_value(reader.int()?),
            Column::Long(to) => to.append_value(reader.long()?),
            Column::Float(to) => to.append_value(reader.float()?),
            Column::Double(to) => to.append_value(reader.double()?),
            Column::Text(to) => to.append_value(reader.string()?),
            Column::Bytes(to) => to.append_value(reader.bytes()?),
            Column::Decimal(to) => {
                to.append_value(decimal_to_i128(reader.bytes()?).ok_or(Malformed("decimal of more than 128 bits"))?);
            }
            Column::WideDecimal(to, scale) => to.append_value(decimal_to_text(reader.bytes()?, *scale)),
            Column::Date(to) => to.append_value(reader.int()?),
            Column::Time(to) => to.append_value(reader.long()?),
            Column::Timestamp(to, _) => to.append_value(reader.long()?),
            Column::List { element, offsets, nulls, .. } => {
                let mut end = offsets.last().copied().unwrap_or(0);
                loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        element.nullable(reader)?;
                    }
                    end += i32::try_from(count).map_err(|_| Malformed("array length"))?;
                }
                offsets.push(end);
                nulls.append_non_null();
            }
            Column::Map { keys, values, offsets, nulls } => {
                let mut end = offsets.last().copied().unwrap_or(0);
                loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        keys.append_value(reader.string()?);
                        if reader.present()? {
                            values.append_value(reader.string()?);
                        } else {
                            values.append_null();
                        }
                    }
                    end += i32::try_from(count).map_err(|_| Malformed("map length"))?;
                }
                offsets.push(end);
                nulls.append_non_null();
            }
            Column::Struct { columns, nulls, .. } => {
                for column in columns {
                    column.nullable(reader)?;
                }
                nulls.append_non_null();
            }
        }
        Ok(())
    }

    pub(crate) fn null(&mut self) {
        match self {
            Column::Boolean(to) => to.append_null(),
            Column::Int(to) => to.append_null(),
            Column::Long(to) => to.append_null(),
            Column::Float(to) => to.append_null(),
            Column::Double(to) => to.append_null(),
            Column::Text(to) | Column::WideDecimal(to, _) => to.append_null(),
            Column::Bytes(to) => to.append_null(),
            Column::Decimal(to) => to.append_null(),
            Column::Date(to) => to.append_null(),
            Column::Time(to) => to.append_null(),
            Column::Timestamp(to, _) => to.append_null(),
            Column::List { offsets, nulls, .. } | Column::Map { offsets, nulls, .. } => {
                offsets.push(offsets.last().copied().unwrap_or(0));
                nulls.append_null();
            }
            Column::Struct { columns, nulls, .. } => {
                columns.iter_mut().for_each(Column::null);
                nulls.append_null();
            }
        }
    }

    /// The column so far; the builder is empty after.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            Column::Boolean(from) => Arc::new(from.finish()),
            Column::Int(from) => Arc::new(from.finish()),
            Column::Long(from) => Arc::new(from.finish()),
            Column::Float(from) => Arc::new(from.finish()),
            Column::Double(from) => Arc::new(from.finish()),
            Column::Text(from) | Column::WideDecimal(from, _) => finish_texts(from),
            Column::Bytes(from) => Arc::new(from.finish()),
            Column::Decimal(from) => Arc::new(from.finish()),
            Column::Date(from) => Arc::new(from.finish()),
            Column::Time(from) => Arc::new(from.finish()),
            Column::Timestamp(from, utc) => {
                let array = from.finish();
                Arc::new(if *utc { array.with_timezone("UTC") } else { array })
            }
            Column::List { element, field, offsets, nulls } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(ListArray::new(field.clone(), offsets, element.finish(), nulls.finish()))
            }
            Column::Map { keys, values, offsets, nulls } => {
                let field = entries();
                let DataType::Struct(fields) = field.data_type().clone() else { unreachable!("entries are a struct") };
                let columns: Vec<ArrayRef> = vec![Arc::new(keys.finish()), Arc::new(values.finish())];
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                let pairs = StructArray::new(fields, columns, None);
                Arc::new(MapArray::new(field, offsets, pairs, nulls.finish(), false))
            }
            Column::Struct { columns, fields, nulls } => {
                let arrays = columns.iter_mut().map(Column::finish).collect();
                Arc::new(StructArray::new(fields.clone(), arrays, nulls.finish()))
            }
        }
    }
}

/// Ends a batch of texts. A finished builder has no room left: the next batch
/// gets as much as this one took, within reason, else it would grow, and copy,
/// all over again.
pub(crate) fn finish_texts(builder: &mut StringBuilder) -> ArrayRef {
    let (rows, bytes) = (builder.len(), builder.values_slice().len());
    let array = builder.finish();
    *builder = StringBuilder::with_capacity(rows, (bytes + bytes / 16).min(1 << 20));
    Arc::new(array)
}
