// Admission: what may refuse an object that is valid.
import { forbidden, notFound } from "./requests.ts"
import type { Labels, Obj } from "./resources.ts"
import type { Store } from "./store.ts"

/** NamespaceLifecycle: the namespace must exist and not be terminating. */
export function admitNamespace(store: Store, resource: string, namespace: string, name: string): void {
  const found = store.find("namespaces", "", namespace)
  if (!found) throw notFound("namespaces", namespace)
  if (!found.metadata.deletionTimestamp) return
  const cause = {
    reason: "NamespaceTerminating",
    message: `namespace ${namespace} is being terminated`,
    field: "metadata.namespace",
  }
  const why = `unable to create new content in namespace ${namespace} because it is being terminated`
  throw forbidden(resource, name, why, [cause])
}

/** ResourceQuota, as far as count/jobs.batch goes: every create needs room, a dry run too. */
export function admitQuota(store: Store, job: Obj): void {
  const { namespace, name } = job.metadata
  for (const quota of store.objects.resourcequotas!.values()) {
    const hard = (quota.spec as { hard?: Labels } | undefined)?.hard?.["count/jobs.batch"]
    if (quota.metadata.namespace !== namespace || hard === undefined) continue
    const used = [...store.objects.jobs!.values()].filter((j) => j.metadata.namespace === namespace).length
    const numbers = `requested: count/jobs.batch=1, used: count/jobs.batch=${used}, limited: count/jobs.batch=${hard}`
    if (used >= Number(hard)) throw forbidden("jobs", name, `exceeded quota: ${quota.metadata.name}, ${numbers}`)
  }
}
