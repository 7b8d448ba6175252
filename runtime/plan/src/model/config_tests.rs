//! What of a `config.json` is understood, defaulted and refused.

use super::*;

fn parse(keys: &str) -> Result<ModelConfig, ModelConfigError> {
    let required = r#""hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 320"#;
    ModelConfig::parse(Path::new("folder/config.json"), &format!("{{{required}, {keys}}}"))
}

fn llama(keys: &str) -> Result<ModelConfig, ModelConfigError> {
    parse(&format!(r#""architectures": ["LlamaForCausalLM"]{}{keys}"#, if keys.is_empty() { "" } else { ", " }))
}

#[test]
fn the_defaults_are_those_of_transformers() {
    let config = llama("").expect("a plain config");
    assert_eq!((config.num_key_value_heads, config.head_dim, config.max_position_embeddings), (4, 16, 2048));
    assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 10_000.0));
    assert_eq!((config.tie_word_embeddings, config.max_exact_length()), (false, None));
    let mistral =
        parse(r#""architectures": ["MistralForCausalLM"], "num_key_value_heads": 2"#).expect("a plain Mistral");
    assert_eq!((mistral.max_exact_length(), mistral.queries_per_key()), (Some(4096), 2));
    let open = parse(r#""model_type": "mistral", "num_key_value_heads": null, "sliding_window": null"#).expect("nulls");
    assert_eq!((open.max_exact_length(), open.num_key_value_heads), (None, 4));
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let factors = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
    let four = llama(&format!(r#""rope_theta": 5e5, "rope_scaling": {{"rope_type": "llama3", {factors}}}"#));
    let five = llama(&format!(r#""rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3", {factors}}}"#));
    let (four, five) = (four.expect("transformers 4").rope, five.expect("transformers 5").rope);
    assert_eq!(four, five);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 2048.0,
    };
    assert_eq!((five.theta, five.scaling), (500_000.0, expected));
    let linear = llama(r#""rope_scaling": {"type": "linear", "factor": 2}"#).expect("the oldest spelling");
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn what_cannot_be_right_or_is_not_built_names_itself() {
    let table = [
        (r#""num_key_value_heads": 3"#, "num_attention_heads is 4: it is not a multiple of num_key_value_heads = 3"),
        (r#""num_key_value_heads": 0"#, "num_key_value_heads is 0"),
        (r#""hidden_size": 65"#, "hidden_size is 65: it is not a multiple of num_attention_heads = 4"),
        (r#""head_dim": 15"#, "head_dim is 15"),
        (r#""hidden_size": -4"#, "hidden_size is -4"),
        (r#""vocab_size": "many""#, "vocab_size is \"many\""),
        (r#""num_hidden_layers": null"#, "the key num_hidden_layers is missing"),
        (r#""rms_norm_eps": -1.0"#, "rms_norm_eps is -1.0"),
        (r#""rope_theta": 0"#, "rope_theta is 0: it must be larger than 0"),
        (r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#, "rope_type is \"yarn\", which is not built yet"),
        (r#""rope_scaling": {"rope_type": "llama3"}"#, "low_freq_factor (of the rope scaling) is missing"),
        (r#""rope_scaling": "linear""#, "rope_scaling is \"linear\""),
        (r#""hidden_act": "gelu""#, "hidden_act is \"gelu\", which is not built yet"),
        (r#""attention_bias": true"#, "attention_bias is true, which is not built yet"),
        (r#""mlp_bias": true"#, "mlp_bias is true, which is not built yet"),
        (r#""attention_dropout": 1.0"#, "attention_dropout is 1.0"),
        (r#""quantization_config": {"bits": 4}"#, "quantization_config is {\"bits\":4}, which is not built yet"),
        (r#""layer_types": ["sliding_attention"]"#, "layer_types is [\"sliding_attention\"]"),
        (r#""tie_word_embeddings": 1"#, "tie_word_embeddings is 1"),
    ];
    for (keys, expected) in table {
        let message = llama(keys).map(|_| String::new()).unwrap_or_else(|error| error.to_string());
        assert!(message.starts_with("folder/config.json: ") && message.contains(expected), "{keys}: {message:?}");
    }
}

#[test]
fn an_unsupported_architecture_names_itself_and_what_is_supported() {
    for keys in [r#""architectures": ["Qwen3ForCausalLM"]"#, r#""model_type": "qwen3""#] {
        let message = parse(keys).expect_err("unsupported").to_string();
        assert!(message.to_lowercase().contains("qwen3") && message.contains("LlamaForCausalLM"), "{message}");
    }
    assert!(parse(r#""a": 1"#).expect_err("nothing named").to_string().contains("architectures is missing"));
}

#[test]
fn files_that_are_missing_or_no_json_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(matches!(ModelConfig::read(folder.path()), Err(ModelConfigError::Read { .. })));
    for text in ["[]", "{", "\u{feff}"] {
        std::fs::write(folder.path().join("config.json"), text).expect("written");
        assert!(matches!(ModelConfig::read(folder.path()), Err(ModelConfigError::Json { .. })), "{text}");
    }
}
