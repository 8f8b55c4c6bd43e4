"""Registry of the names in traces and metrics. Services use these constants only, so that a name means one thing.

Attributes never hold user features or ids of users.
"""

from __future__ import annotations

from typing import Final

# Spans inside a service; spans of calls carry the method, as OpenTelemetry's conventions for RPC ask.
SPAN_EMBED_ADS: Final = "embed ads"
SPAN_ASSIGN_SIDS: Final = "assign sids"
SPAN_STORE_ADS: Final = "store ads"
SPAN_APPLY_CATALOG_CHANGES: Final = "apply catalog changes"
SPAN_REBUILD_TRIE: Final = "rebuild trie"
SPAN_WAIT_FOR_BATCH: Final = "wait for batch"
SPAN_GENERATE_BATCH: Final = "generate batch"
SPAN_ENCODE_CONTEXT: Final = "encode context"
SPAN_BEAM_SEARCH: Final = "beam search"
SPAN_SCORE_ADS: Final = "score ads"
SPAN_SWAP_POLICY: Final = "swap policy"
SPAN_SEND_SERVED_LISTS: Final = "send served lists"
SPAN_STORE_SERVED_LISTS: Final = "store served lists"
SPAN_STORE_EVENTS: Final = "store events"
SPAN_TRAIN_POLICY: Final = "train policy"
SPAN_READ_SAMPLES: Final = "read samples"
SPAN_PUBLISH_POLICY: Final = "publish policy"

# Calls, as in OpenTelemetry's conventions for RPC.
RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.grpc.status_code"
SERVER_ADDRESS: Final = "server.address"

# What a call or a piece of work was about.
REQUEST_ID: Final = "gr4ad.request.id"
AD_COUNT: Final = "gr4ad.ad.count"
AD_ID: Final = "gr4ad.ad.id"
LIVE_AD_COUNT: Final = "gr4ad.ad.live_count"
CODEBOOK_ID: Final = "gr4ad.codebook.id"
CATALOG_CURSOR: Final = "gr4ad.catalog.cursor"
CHANGE_COUNT: Final = "gr4ad.catalog.change_count"
POLICY_ID: Final = "gr4ad.policy.id"
POLICY_CHANNEL: Final = "gr4ad.policy.channel"
HISTORY_LENGTH: Final = "gr4ad.history.length"
HISTORY_SKIPPED: Final = "gr4ad.history.skipped"
CANDIDATES_WANTED: Final = "gr4ad.candidates.wanted"
CANDIDATES_RETURNED: Final = "gr4ad.candidates.returned"
BATCH_SIZE: Final = "gr4ad.batch.size"
BEAM_WIDTHS: Final = "gr4ad.beam.widths"
BEAM_CONSTRAINED_BY: Final = "gr4ad.beam.constrained_by"
LIST_COUNT: Final = "gr4ad.served_list.count"
EVENT_COUNT: Final = "gr4ad.event.count"
DUPLICATE_COUNT: Final = "gr4ad.event.duplicate_count"
RUN_ID: Final = "gr4ad.training.run_id"
PRESET: Final = "gr4ad.training.preset"
STEP: Final = "gr4ad.training.step"
SAMPLE_COUNT: Final = "gr4ad.training.sample_count"
OUTCOME: Final = "gr4ad.outcome"

# Meters. Durations in seconds, as OpenTelemetry asks.
METRIC_CALL_DURATION: Final = "rpc.server.call.duration"
METRIC_ADS_CREATED: Final = "gr4ad.sid.ads_created"
METRIC_CATALOG_READERS: Final = "gr4ad.sid.catalog_readers"
METRIC_BATCH_SIZE: Final = "gr4ad.generation.batch_size"
METRIC_BATCH_WAIT: Final = "gr4ad.generation.batch_wait"
METRIC_BATCH_DURATION: Final = "gr4ad.generation.batch_duration"
METRIC_LIVE_ADS: Final = "gr4ad.generation.live_ads"
METRIC_CATALOG_LAG: Final = "gr4ad.generation.catalog_lag"
METRIC_POLICY_SWAPS: Final = "gr4ad.generation.policy_swaps"
METRIC_LISTS_SENT: Final = "gr4ad.generation.lists_sent"
METRIC_LISTS_DROPPED: Final = "gr4ad.generation.lists_dropped"
METRIC_LISTS_QUEUED: Final = "gr4ad.generation.lists_queued"
METRIC_LISTS_STORED: Final = "gr4ad.reward.lists_stored"
METRIC_EVENTS_STORED: Final = "gr4ad.reward.events_stored"
METRIC_TRAINING_RUNS: Final = "gr4ad.training.runs"
METRIC_TRAINING_LOSS: Final = "gr4ad.training.loss"
METRIC_POLICIES_PUBLISHED: Final = "gr4ad.training.policies_published"
