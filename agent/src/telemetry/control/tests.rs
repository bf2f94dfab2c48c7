use tempfile::TempDir;

use super::*;
use crate::telemetry::status;

fn status() -> Status {
    let cause = status::Cause::new(status::Code::StoreUnreachable, "waiting for etcd");
    Status::joining(status::Agent::of_process("node", 1), vec![cause])
}

fn listen(directory: &TempDir) -> (ControlService, Questions, Client) {
    let path = directory.path().join("run/agent.sock");
    let (control, questions) = ControlService::new(Health::new().0);
    control
        .clone()
        .listen(&path, std::future::pending())
        .unwrap();
    (control, questions, Client::new(&path))
}

#[tokio::test]
async fn while_joining_the_last_word_is_told_and_afterwards_the_loop_answers() {
    let directory = TempDir::new().unwrap();
    let (control, mut questions, client) = listen(&directory);
    control.set_joining(Some(status()));
    let told = client.status().await.unwrap();
    assert_eq!(told.health.state, status::State::Joining);
    assert_eq!(told.health.reasons, ["waiting for etcd"]);
    assert_eq!(told.health.causes, status().health.causes);

    control.set_joining(None);
    let asked = tokio::spawn(async move { client.status().await });
    let Some(Question::Status(sender)) = questions.recv().await else {
        panic!("another question");
    };
    let mut other = status();
    other.health.reasons = vec!["another word".to_owned()];
    sender.send(other).unwrap();
    let told = asked.await.unwrap().unwrap();
    assert_eq!(told.health.reasons, ["another word"]);
}

#[tokio::test]
async fn anybody_may_ask_and_a_dead_agents_socket_is_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run/agent.sock");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (control, _questions, client) = listen(&directory);
    control.set_joining(Some(status()));
    client.status().await.unwrap();
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[tokio::test]
async fn neither_a_living_agents_socket_nor_a_file_is_replaced() {
    let directory = TempDir::new().unwrap();
    let (control, _questions, client) = listen(&directory);
    control.set_joining(Some(status()));
    let (other, _) = ControlService::new(Health::new().0);
    let path = directory.path().join("run/agent.sock");
    let error = other.clone().listen(&path, std::future::pending());
    assert!(matches!(&error, Err(error) if error.source.kind() == io::ErrorKind::AddrInUse));
    client.status().await.unwrap();

    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    other.listen(&file, std::future::pending()).unwrap_err();
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn a_loop_that_does_not_answer_is_named() {
    let (control, questions) = ControlService::new(Health::new().0);
    drop(questions);
    let answer = control.status().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.body.starts_with(b"the agent is busy"), "{answer:?}");
}

#[tokio::test]
async fn without_an_agent_the_socket_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.sock");
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    assert!(error.to_string().contains("agent.sock"), "{error}");
}

#[test]
fn addresses_and_subnets_are_understood() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(asked("address=10.5.1.2"), Some(net("10.5.1.2/32")));
    assert_eq!(asked("x=1&address=10.5.1.0/24"), Some(net("10.5.1.0/24")));
    assert_eq!(asked("address=10.5.1.0%2F24"), Some(net("10.5.1.0/24")));
    assert_eq!(asked("address=fd00%3A%3A1"), Some(net("fd00::1/128")));
    for bad in ["", "address=", "address=node1", "addr=10.5.1.2"] {
        assert_eq!(asked(bad), None, "{bad}");
    }
}
