export { type Address, createKube, type Kube, KubeError, type ListOptions, type Resource, resource } from "./kube.ts";
export { type LeaseOptions, withLease } from "./lease.ts";
export { keyOf, watch, type WatchOptions } from "./watch.ts";
