-- How many living workers have not said yet that they stopped using the model. ARGV: model, fence.
local key = SLOTS .. ':drained:' .. ARGV[1] .. ':' .. ARGV[2]
local missing = 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. string.format('%.6f', now()), '+inf')) do
  if redis.call('SISMEMBER', key, worker) == 0 then missing = missing + 1 end
end
return missing
