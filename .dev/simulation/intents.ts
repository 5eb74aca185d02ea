// Intents as the simulation reads them from the store, independently of the operator's own reading.
import { PREFIX } from "../../operator.ts"
import type { Job, Obj } from "../apiserver/model.ts"
import { jobOfIntent } from "./network.ts"

/** An intent that stands in the store. */
export interface StoredIntent {
  object: Job
  jobName: string
  /** The Job that it replaces; empty where its annotations were removed. */
  uid: string
  version: string
  /** When it is due; NaN where it is due at once. */
  dueAt: number
  /** What is to be created; undefined for an intent of 1.0.0. */
  replacement: unknown
  isV1: boolean
  /** It carries labels or annotations of the user, for a policy wanted them, or a person wrote them on it. */
  isWide: boolean
  isTerminating: boolean
}

const parse = (text: string | undefined): Record<string, string> => JSON.parse(text ?? "{}")
const seen = new WeakMap<Obj, StoredIntent>()

/** Reads an intent; undefined for what is none. */
export function readStored(object: Obj): StoredIntent | undefined {
  const jobName = jobOfIntent(object.metadata.name)
  if (jobName === undefined) return undefined
  const known = seen.get(object)
  if (known) return known
  const { labels = {}, annotations = {}, deletionTimestamp } = object.metadata
  const old = annotations[`${PREFIX}intent`]
  const { uid = "", resourceVersion = "", dueAt, notBefore } = parse(old ?? annotations[`${PREFIX}replaces`])
  const text = annotations[`${PREFIX}replacement`]
  const read: StoredIntent = {
    object: object as Job,
    jobName,
    uid,
    version: resourceVersion,
    dueAt: Date.parse(dueAt ?? notBefore ?? ""),
    replacement: text === undefined ? undefined : JSON.parse(text),
    // Of one whose annotations a webhook dropped, parallelism tells: the current version writes 0.
    isV1: old !== undefined || (text === undefined && (object as Job).spec.parallelism !== 0),
    isWide: labels.app !== undefined || annotations.note !== undefined,
    isTerminating: deletionTimestamp !== undefined,
  }
  seen.set(object, read)
  return read
}
