//! The messages of an event file, as far as scalars need them; numbers of fields are those of TensorFlow's `event.proto` and
//! `summary.proto`.

/// What every file begins with.
pub(super) const FILE_VERSION: &str = "brain.Event:2";
/// [`SessionLog::status`]: a job starts; events of its step and later ones in earlier files no longer count.
pub(super) const SESSION_START: i32 = 1;

/// Something at a step.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub(super) what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    /// Written even where it is 0, which would otherwise be no value at all.
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
}

impl Summary {
    /// Scalars by their tags.
    pub(super) fn of<T: ToString>(scalars: &[(T, f64)]) -> Summary {
        let value =
            scalars.iter().map(|(tag, value)| Value { tag: tag.to_string(), simple_value: Some(*value as f32) });
        Summary { value: value.collect() }
    }
}
