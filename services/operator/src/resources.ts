/** The custom resources as the operator reads them. Their content is checked when it is used, because an older CRD may have allowed more. */
import type {
  CoreV1Event,
  KubernetesObject,
  V1ConfigMap,
  V1Deployment,
  V1Job,
  V1Namespace,
  V1Pod,
  V1PodDisruptionBudget,
  V1Service,
} from "@kubernetes/client-node";
import {
  type AdapterResourceSpec,
  type AdapterStatus,
  type BaseResourceSpec,
  type BaseResourceStatus,
  crdGroup,
  crdVersion,
  type EngineResourceSpec,
  type EngineResourceStatus,
  type FineTuneStatus,
} from "@loraline/contracts";
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
export interface Engine extends KubernetesObject {
  spec?: EngineResourceSpec;
  status?: EngineResourceStatus;
}
export interface Base extends KubernetesObject {
  spec?: BaseResourceSpec;
  status?: BaseResourceStatus;
}

export const fineTunes = resource<FineTune>(apiVersion, "FineTune", "finetunes");
export const adapters = resource<Adapter>(apiVersion, "Adapter", "adapters");
export const engines = resource<Engine>(apiVersion, "Engine", "engines");
export const bases = resource<Base>(apiVersion, "Base", "bases");
export const jobs = resource<V1Job>("batch/v1", "Job", "jobs");
export const deployments = resource<V1Deployment>("apps/v1", "Deployment", "deployments");
export const services = resource<V1Service>("v1", "Service", "services");
export const disruptionBudgets = resource<V1PodDisruptionBudget>("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets");
export const pods = resource<V1Pod>("v1", "Pod", "pods");
export const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
export const events = resource<CoreV1Event>("v1", "Event", "events");
export const namespaces = resource<V1Namespace>("v1", "Namespace", "namespaces", false);

/** The operator's name as owner of status fields and as source of Events. */
export const manager = "loraline-operator";
