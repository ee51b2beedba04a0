//! The server as a value of this process: the whole node, listener included, on
//! a directory and ports of its own.

use stele::config::{self, Request};

pub(crate) struct Node(stele::node::Node);

impl Node {
    /// Starts a node with the command line of a process, and no environment.
    pub(crate) async fn start(arguments: Vec<String>) -> Result<Node, String> {
        let config = match config::read(arguments, []) {
            Ok(Request::Serve(config)) => *config,
            Ok(_) => return Err("these flags do not ask to serve".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let node = stele::node::Node::start(config).await;
        node.map(Node).map_err(|error| error.to_string())
    }

    pub(crate) async fn stop(self) -> Result<(), String> {
        self.0.stop().await;
        Ok(())
    }
}
