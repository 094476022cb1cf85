//! async-openai against a server. Its types are strict: a wrong shape anywhere is an error here.

use std::env::var;
use std::error::Error;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionRequestMessage, ChatCompletionRequestUserMessage, ChatCompletionStreamOptions,
    CreateChatCompletionRequest, CreateChatCompletionRequestArgs, FinishReason,
};
use async_openai::types::completions::CreateCompletionRequestArgs;
use futures::StreamExt;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn chat(model: &str) -> CreateChatCompletionRequestArgs {
    let message = ChatCompletionRequestUserMessage::from("Name a colour.");
    let mut request = CreateChatCompletionRequestArgs::default();
    request
        .model(model)
        .messages([ChatCompletionRequestMessage::User(message)])
        .temperature(0.0)
        .max_completion_tokens(24_u32);
    request
}

async fn streamed(client: &Client<OpenAIConfig>, request: CreateChatCompletionRequest) -> Result<String> {
    let mut stream = client.chat().create_stream(request).await?;
    let (mut text, mut finish, mut usage) = (String::new(), None, None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        usage = usage.or(chunk.usage);
        for choice in chunk.choices {
            text.push_str(choice.delta.content.as_deref().unwrap_or(""));
            finish = choice.finish_reason.or(finish);
        }
    }
    assert!(matches!(finish, Some(FinishReason::Stop | FinishReason::Length)), "{finish:?}");
    assert!(usage.is_some_and(|usage| usage.completion_tokens > 0));
    Ok(text)
}

/// The error that a refused request must give, read by the client's own type.
fn refused<T>(result: std::result::Result<T, OpenAIError>) -> async_openai::error::ApiErrorResponse {
    match result {
        Err(OpenAIError::ApiError(error)) => error,
        Err(error) => panic!("not an API error: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (base_url, model, adapter) = (var("BASE_URL")?, var("MODEL")?, var("ADAPTER").unwrap_or_default());
    let config = OpenAIConfig::new().with_api_base(format!("{base_url}/v1")).with_api_key(var("OPENAI_API_KEY")?);
    let client = Client::with_config(config);

    let models = client.models().list().await?;
    assert!(models.data.iter().any(|card| card.id == model));
    assert_eq!(client.models().retrieve(&model).await?.id, model);
    println!("ok models");

    let whole = client.chat().create(chat(&model).build()?).await?;
    let content = whole.choices[0].message.content.clone().unwrap_or_default();
    assert!(!content.is_empty());
    let options = ChatCompletionStreamOptions { include_usage: Some(true), include_obfuscation: None };
    let text = streamed(&client, chat(&model).stream_options(options).build()?).await?;
    assert_eq!(text, content);
    println!("ok chat");

    let answer = client.chat().create(chat(&model).logprobs(true).top_logprobs(2_u8).build()?).await?;
    let rows = answer.choices[0].logprobs.as_ref().and_then(|logprobs| logprobs.content.as_ref());
    let rows = rows.ok_or("no log-probabilities")?;
    assert!(rows.iter().all(|row| row.top_logprobs.len() == 2 && row.logprob == row.top_logprobs[0].logprob));
    println!("ok logprobs");

    let mut request = CreateCompletionRequestArgs::default();
    request.model(&model).prompt("abcdefg").max_tokens(6_u32).temperature(0.0).logprobs(1_u8);
    let answer = client.completions().create(request.build()?).await?;
    let mut stream = client.completions().create_stream(request.stream(true).build()?).await?;
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.extend(chunk?.choices.into_iter().map(|choice| choice.text));
    }
    assert_eq!(text, answer.choices[0].text);
    println!("ok completions");

    let unknown = refused(client.chat().create(chat("no-such-model").build()?).await);
    assert_eq!(unknown.status_code.as_u16(), 404);
    assert_eq!(unknown.api_error.code.as_deref(), Some("model_not_found"));
    let absurd = refused(client.chat().create(chat(&model).temperature(-1.0).build()?).await);
    assert_eq!((absurd.status_code.as_u16(), absurd.api_error.param.as_deref()), (400, Some("temperature")));
    println!("ok errors");

    if adapter.is_empty() {
        println!("SKIPPED: adapters (no ADAPTER given)");
    } else {
        let other = client.chat().create(chat(&adapter).build()?).await?;
        assert_ne!(other.choices[0].message.content, Some(content));
        println!("ok adapter");
    }
    Ok(())
}
