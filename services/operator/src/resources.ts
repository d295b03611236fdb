/** The custom resources as the operator reads them. Their content is checked when it is used, because an older CRD may have allowed more. */
import type { CoreV1Event, KubernetesObject, V1ConfigMap, V1Namespace } from "@kubernetes/client-node";
import { type AdapterResourceSpec, type AdapterStatus, crdGroup, crdVersion, type FineTuneStatus } from "@loraline/contracts";
import { resource } from "@loraline/kube";

const apiVersion = `${crdGroup}/${crdVersion}`;

export interface FineTune extends KubernetesObject {
  spec?: Record<string, unknown>;
  status?: FineTuneStatus;
}
export interface Adapter extends KubernetesObject {
  spec?: AdapterResourceSpec;
  status?: AdapterStatus;
}

export const fineTunes = resource<FineTune>(apiVersion, "FineTune", "finetunes");
export const adapters = resource<Adapter>(apiVersion, "Adapter", "adapters");
export const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
export const events = resource<CoreV1Event>("v1", "Event", "events");
export const namespaces = resource<V1Namespace>("v1", "Namespace", "namespaces", false);

/** The operator's name as owner of status fields and as source of Events. */
export const manager = "loraline-operator";
