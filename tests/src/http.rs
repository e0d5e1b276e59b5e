//! The one HTTP request the tests need.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As in 200.
    pub status: u16,
    /// The lines before the empty one.
    pub head: String,
    /// What follows it.
    pub body: String,
}

impl Answer {
    /// A header by its name in small letters; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let headers = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut named = headers.filter(|(header, _)| header.eq_ignore_ascii_case(name));
        named.next().map_or("", |(_, value)| value.trim())
    }
}

/// Status and body of `GET path`.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let answer = exchange(address, path).await?;
    Ok((answer.status, answer.body))
}

/// The whole answer to `GET path`.
pub async fn exchange(address: &str, path: &str) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(Duration::from_secs(5), exchange).await.context("no answer over HTTP within 5 s")??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
