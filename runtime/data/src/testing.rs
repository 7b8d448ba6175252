//! A small byte-level tokenizer and the shapes of well-known chat templates, for tests.

use serde_json::json;

use crate::model_files::SpecialTokens;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// The printable stand-in that byte-level tokenizers use for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden = |byte: u8| (0..byte).filter(|&other| !printable(other)).count() as u32;
    if printable(byte) { char::from(byte) } else { char::from_u32(256 + hidden(byte)).unwrap() }
}

/// Byte-level BPE with the merges for "the", " the" and "\n ", special tokens in front, and a `<s>` that is added.
pub(crate) fn tokenizer_json() -> String {
    let special =
        ["<s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>", "<|start_header_id|>", "<|end_header_id|>"];
    let mut tokens: Vec<String> = special.iter().map(|token| token.to_string()).collect();
    tokens.extend((0..=255).map(|byte| stand_in(byte).to_string()));
    let merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["Ċ", "Ġ"]];
    tokens.extend(merges.iter().map(|pair| pair.concat()));
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges}
    })
    .to_string()
}

pub(crate) fn tokenizer() -> Tokenizer {
    let inner = tokenizers::Tokenizer::from_bytes(tokenizer_json()).unwrap();
    Tokenizer::new(inner, special(), vec![2])
}

pub(crate) fn special() -> SpecialTokens {
    SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")])
}

pub(crate) fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, special()).unwrap()
}

/// ChatML with a default system message.
pub(crate) const CHATML: &str = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}\
{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Headers between two special tokens and an empty line, contents trimmed.
pub(crate) const HEADERS: &str = "{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
";

/// Questions in brackets, answers without a header, roles strictly in turns.
pub(crate) const BRACKETS: &str = "{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- endif %}
{%- endfor %}
";

/// ChatML that marks what the assistant writes.
pub(crate) const MARKED: &str = "{% for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation -%}
        {{ message.content + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Takes the thinking out of every answer but the last.
pub(crate) const FORGETFUL: &str = "{% for message in messages %}<|im_start|>{{ message.role + '\n' }}\
{{ message.content if loop.last else message.content.split('</think>')[-1] }}<|im_end|>{{ '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
