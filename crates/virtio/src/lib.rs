//! Virtio devices over PCI: console, block, network, entropy, vsock.
