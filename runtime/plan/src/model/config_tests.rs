//! What of a `config.json` is understood, defaulted and refused.

use super::*;
use crate::model::{Activation, Biases, Head, LayerAttention};
use zerofold_configs::ProblemType;

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
    assert_eq!((config.norm_epsilon, config.ropes[0].theta), (1e-6, 10_000.0));
    assert_eq!((config.tie_word_embeddings, config.layer(0).window), (false, None));
    let mistral =
        parse(r#""architectures": ["MistralForCausalLM"], "num_key_value_heads": 2"#).expect("a plain Mistral");
    assert_eq!((mistral.layer(2).window, mistral.queries_per_key()), (Some(4096), 2));
    let open = parse(r#""model_type": "mistral", "num_key_value_heads": null, "sliding_window": null"#).expect("nulls");
    assert_eq!((open.layer(2).window, open.num_key_value_heads), (None, 4));
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let factors = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
    let four = llama(&format!(r#""rope_theta": 5e5, "rope_scaling": {{"rope_type": "llama3", {factors}}}"#));
    let five = llama(&format!(r#""rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3", {factors}}}"#));
    let (four, five) = (four.expect("transformers 4").ropes.remove(0), five.expect("transformers 5").ropes.remove(0));
    assert_eq!(four, five);
    let both = llama(&format!(
        r#""rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3"}}, "rope_scaling": {{"rope_type": "llama3", {factors}}}"#
    ));
    assert_eq!(both.expect("both, alike").ropes[0], five);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 2048.0,
    };
    assert_eq!((five.theta, five.scaling), (500_000.0, expected));
    let linear = llama(r#""rope_scaling": {"type": "linear", "factor": 2}"#).expect("the oldest spelling");
    assert_eq!(linear.ropes[0].scaling, RopeScaling::Linear { factor: 2.0 });
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
        (
            r#""rope_scaling": {"rope_type": "dynamic", "factor": 4.0}"#,
            "rope_type is \"dynamic\", which is not built yet",
        ),
        (
            r#""rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 0.5}"#,
            "beta_fast is 0.5: it must be at least beta_slow = 1",
        ),
        (r#""rope_scaling": {"rope_type": "yarn", "factor": 4, "mscale": -1}"#, "mscale is -1: it must be 0 or larger"),
        (
            r#""rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": 1}"#,
            "truncate is 1: it must be true or false",
        ),
        (r#""rope_scaling": {"rope_type": "yarn"}"#, "factor (of the rope scaling) is missing"),
        (r#""rope_scaling": {"rope_type": "yarn", "factor": 0.5}"#, "factor is 0.5: it must be at least 1"),
        (r#""rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fst": 1}"#, "did you mean beta_fast?"),
        (r#""rope_scaling": {"rope_type": "llama3"}"#, "low_freq_factor (of the rope scaling) is missing"),
        (
            r#""rope_parameters": {"rope_type": "linear", "factor": 2}, "rope_scaling": {"rope_type": "linear", "factor": 4}"#,
            "rope_parameters has factor: 2; keep what the model was trained with",
        ),
        (r#""rope_scaling": "linear""#, "rope_scaling is \"linear\""),
        (r#""model_type": "mistral""#, "model_type is \"mistral\": architectures names LlamaForCausalLM"),
        (r#""num_hidden_layers": 10001"#, "num_hidden_layers is 10001: it must be at most 10000"),
        (r#""head_dim": 1000000000"#, "num_attention_heads is 4: with heads 1000000000 wide"),
        (
            r#""original_max_position_embeddings": -4096, "rope_scaling": {"type": "longrope", "short_factor": []}"#,
            "original_max_position_embeddings is -4096: it must be a whole number",
        ),
        (r#""hidden_act": "gelu""#, "hidden_act is \"gelu\", which is not built yet"),
        (r#""attention_bias": 1"#, "attention_bias is 1: it must be true or false"),
        (r#""use_qk_norm": true"#, "use_qk_norm is true, which is not built yet"),
        (r#""use_bidirectional_attention": true"#, "use_bidirectional_attention is true, which is not built yet"),
        (r#""partial_rotary_factor": 0.5"#, "partial_rotary_factor is 0.5, which is not built yet"),
        (r#""query_pre_attn_scalar": 16"#, "query_pre_attn_scalar is 16, which is not built yet"),
        (r#""rope_scaling": {"type": "longrope"}"#, "short_factor (of the rope scaling) is missing"),
        (r#""rope_scaling": {"type": "longrope", "short_factor": [1.0, 0]}"#, "short_factor is [1.0,0]"),
        (r#""rope_scaling": {"type": "longrope", "short_factor": [1.0]}"#, "1 divisors for 8 pairs"),
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

fn bert(keys: &str) -> Result<ModelConfig, ModelConfigError> {
    parse(&format!(r#""architectures": ["BertModel"]{}{keys}"#, if keys.is_empty() { "" } else { ", " }))
}

#[test]
fn encoders_have_the_defaults_of_transformers() {
    let config = bert("").expect("a plain BERT");
    assert_eq!(config.architecture, "BertForSequenceClassification");
    assert_eq!((config.norm_epsilon, config.token_types, config.max_position_embeddings), (1e-12, 2, 512));
    assert_eq!((config.hidden_dropout, config.attention_dropout, config.embedding_dropout), (0.1, 0.1, 0.1));
    assert_eq!((config.head_dropout, config.activation, config.causal), (0.1, Activation::Gelu, false));
    assert_eq!(config.head, Head::Classes { labels: 2, problem: ProblemType::SingleLabel });
    let keys = r#""hidden_dropout_prob": 0.2, "classifier_dropout": null, "id2label": {"0": "a", "1": "b", "2": "c"}"#;
    let config = bert(keys).expect("three classes");
    assert_eq!((config.head_dropout, config.head_rows()), (0.2, 3));
    let regression = bert(r#""id2label": {"0": "stars"}, "classifier_dropout": 0.0"#).expect("one number");
    assert_eq!(regression.head, Head::Classes { labels: 1, problem: ProblemType::Regression });
    let several = bert(r#""num_labels": 4, "problem_type": "multi_label_classification""#).expect("several at once");
    assert_eq!(several.head, Head::Classes { labels: 4, problem: ProblemType::MultiLabel });
    // Its file counts the two positions that stand for none.
    let roberta = parse(r#""model_type": "roberta", "max_position_embeddings": 514"#).expect("a plain RoBERTa");
    assert_eq!((roberta.position_offset, roberta.max_exact_length()), (2, Some(512)));
    assert_eq!(roberta.names.classifier, "classifier.out_proj");
}

#[test]
fn what_of_an_encoder_is_not_built_is_refused() {
    let table = [
        (r#""position_embedding_type": "relative_key""#, "position_embedding_type is \"relative_key\""),
        (r#""is_decoder": true"#, "is_decoder is true, which is not built yet"),
        (r#""add_cross_attention": true"#, "add_cross_attention is true, which is not built yet"),
        (r#""chunk_size_feed_forward": 8"#, "chunk_size_feed_forward is 8, which is not built yet"),
        (r#""hidden_act": "relu""#, "hidden_act is \"relu\", which is not built yet"),
        (r#""problem_type": "ranking""#, "problem_type is \"ranking\": it must be one of single_label_classification"),
        (r#""id2label": []"#, "id2label is []"),
        (r#""classifier_dropout": 1.0"#, "classifier_dropout is 1.0"),
        (r#""layer_norm_eps": -1"#, "layer_norm_eps is -1"),
    ];
    for (keys, expected) in table {
        let message = bert(keys).map(|_| String::new()).unwrap_or_else(|error| error.to_string());
        assert!(message.starts_with("folder/config.json: ") && message.contains(expected), "{keys}: {message:?}");
    }
    let short =
        parse(r#""model_type": "roberta", "max_position_embeddings": 2"#).expect_err("no positions").to_string();
    assert!(
        short.contains("max_position_embeddings is 2: the first 2 embeddings of positions stand for none"),
        "{short}"
    );
    let padding = parse(r#""model_type": "roberta", "pad_token_id": -1"#).expect_err("no token").to_string();
    assert!(padding.contains("pad_token_id is -1"), "{padding}");
}

#[test]
fn an_unsupported_architecture_names_itself_and_what_is_supported() {
    for keys in [r#""architectures": ["FalconForCausalLM"]"#, r#""model_type": "falcon""#] {
        let message = parse(keys).expect_err("unsupported").to_string();
        assert!(
            message.to_lowercase().contains("falcon") && message.contains("LlamaForCausalLM, Mistral"),
            "{message}"
        );
    }
    for keys in [r#""architectures": ["Qwen3MoeForCausalLM"]"#, r#""model_type": "mixtral", "num_local_experts": 8"#] {
        let message = parse(keys).expect_err("unsupported").to_string();
        assert!(message.contains("mixtures of experts are not built"), "{message}");
    }
    assert!(parse(r#""a": 1"#).expect_err("nothing named").to_string().contains("architectures is missing"));
}

/// What each family makes of a file that holds the sizes alone, as transformers 5.23 does.
#[test]
fn families_have_defaults_of_their_own() {
    let of = |model_type: &str| parse(&format!(r#""model_type": "{model_type}""#)).expect(model_type);
    let (qwen2, qwen3) = (parse(r#""model_type": "qwen2", "num_key_value_heads": 2"#).expect("Qwen 2"), of_qwen3());
    assert_eq!((qwen2.biases, qwen2.layer(0).window), (Biases { qkv: true, ..Biases::default() }, None));
    assert_eq!((qwen3.head_dim, qwen3.query_key_norm, qwen3.biases), (128, true, Biases::default()));
    // As the files of Qwen 3 have it.
    let open =
        r#""model_type": "qwen3", "num_key_value_heads": 2, "use_sliding_window": false, "sliding_window": null"#;
    assert_eq!(parse(open).expect("no window").layer(2).window, None);
    let gemma2 = of("gemma2");
    assert_eq!((gemma2.head_dim, gemma2.num_key_value_heads, gemma2.tie_word_embeddings), (256, 4, true));
    assert_eq!(
        (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.attention_scale),
        (Some(50.0), Some(30.0), Some(1.0 / 16.0))
    );
    assert_eq!([0, 1, 2].map(|layer| gemma2.layer(layer).window), [Some(4096), None, Some(4096)]);
    assert_eq!(gemma2.embedding_scale, Some(8.0));
    let gemma3 = of("gemma3_text");
    assert_eq!((gemma3.attention_softcap, gemma3.logit_softcap), (None, None));
    assert_eq!(gemma3.ropes.iter().map(|rope| rope.theta).collect::<Vec<_>>(), [1e6, 1e4]);
    assert_eq!(gemma3.layer(0), LayerAttention { window: Some(4096), rope: Some(1) });
    let smollm3 = parse(r#""model_type": "smollm3", "num_hidden_layers": 4"#).expect("SmolLM3");
    assert_eq!(smollm3.ropes[0].theta, 2e6);
    assert_eq!([0, 1, 2, 3].map(|layer| smollm3.layer(layer).rope), [Some(0), Some(0), Some(0), None]);
    // The context before it was stretched is Phi's own where the file names none.
    let factors = "1.0, ".repeat(7) + "2.0";
    let long = format!(
        r#""model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": {{"type": "longrope", "short_factor": [{factors}]}}"#
    );
    let long = parse(&long).expect("LongRoPE");
    assert_eq!(long.max_exact_length(), Some(4096));
    assert!((long.ropes[0].attention_factor() - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
    let phi3 = of("phi3");
    assert_eq!((phi3.norm_epsilon, phi3.max_position_embeddings, phi3.layer(0).window), (1e-5, 4096, None));
    let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}"#;
    let gpt2 = ModelConfig::parse(Path::new("folder/config.json"), gpt2).expect("GPT-2");
    assert_eq!((gpt2.intermediate_size, gpt2.max_exact_length(), gpt2.head_dim), (3072, Some(1024), 64));
    assert_eq!((gpt2.attention_dropout, gpt2.hidden_dropout, gpt2.embedding_dropout), (0.1, 0.1, 0.1));
}

fn of_qwen3() -> ModelConfig {
    parse(r#""model_type": "qwen3", "num_key_value_heads": 2"#).expect("Qwen 3")
}

#[test]
fn families_refuse_what_they_cannot_mean() {
    let table = [
        (
            r#""model_type": "gemma3_text", "attn_logit_softcapping": 50.0"#,
            "attn_logit_softcapping is 50.0, which is not",
        ),
        (r#""model_type": "gemma2", "hidden_activation": "relu""#, "hidden_activation is \"relu\", which is not built"),
        (r#""model_type": "gemma2", "final_logit_softcapping": 0"#, "final_logit_softcapping is 0: it must be larger"),
        (
            r#""model_type": "gemma2", "layer_types": ["chunked_attention", "full_attention", "full_attention"]"#,
            "layer_types is",
        ),
        (r#""model_type": "gemma2", "layer_types": ["full_attention"]"#, "1 types for num_hidden_layers = 3"),
        (
            r#""model_type": "gemma2", "sliding_window": null"#,
            "sliding_window is null: layers of sliding attention need",
        ),
        (r#""model_type": "gemma3_text", "rope_parameters": {"full_attention": 7}"#, "full_attention in it must be"),
        (r#""model_type": "qwen3", "num_key_value_heads": 2, "use_sliding_window": 1"#, "use_sliding_window is 1"),
        (
            r#""model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention", "full_attention"]"#,
            "but use_sliding_window is false",
        ),
        (r#""model_type": "smollm3", "no_rope_layers": [1, 2, 0]"#, "0 or 1 for each of 3 layers"),
        (r#""model_type": "phi3", "embd_pdrop": 0.1"#, "embd_pdrop is 0.1, which is not built"),
        (r#""model_type": "phi3", "head_dim": 100, "partial_rotary_factor": 0.75"#, "an even number must turn"),
        (r#""model_type": "gemma2", "hidden_activation": "gelu""#, "a gate goes by gelu_pytorch_tanh or silu"),
        (r#""model_type": "phi3", "partial_rotary_factor": 1.5"#, "partial_rotary_factor is 1.5: it must be"),
    ];
    for (keys, expected) in table {
        let keys = keys.replace("\"gemma2\"", "\"gemma2\", \"num_key_value_heads\": 2");
        let keys = keys.replace("\"gemma3_text\"", "\"gemma3_text\", \"num_key_value_heads\": 2");
        let message = parse(&keys).map(|_| String::new()).unwrap_or_else(|error| error.to_string());
        assert!(message.contains(expected), "{keys}: {message:?}");
    }
    let gpt2 = |key: &str| {
        let sizes = r#""model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4"#;
        let text = format!("{{{sizes}, {key}}}");
        ModelConfig::parse(Path::new("folder/config.json"), &text).expect_err("refused").to_string()
    };
    for (key, expected) in [
        (r#""scale_attn_by_inverse_layer_idx": true"#, "scale_attn_by_inverse_layer_idx is true, which is not built"),
        (r#""scale_attn_weights": false"#, "scale_attn_weights is false"),
        (r#""add_cross_attention": true"#, "add_cross_attention is true"),
        (r#""n_positions": 0"#, "n_positions is 0"),
        (r#""activation_function": "relu""#, "activation_function is \"relu\""),
    ] {
        let message = gpt2(key);
        assert!(message.contains(expected), "{key}: {message:?}");
    }
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
